"""Which mapping an artifact belongs to."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sized
from dataclasses import replace
from pathlib import Path

from porter.artifacts.metadata import Metadata
from porter.errors import ArtifactError
from porter.mapping.files import load_mapping, load_variant, variant_named
from porter.mapping.options import PortOptions
from porter.mapping.schema import VariantMapping
from porter.network.network import Network

# Of a classifier, or of both inputs of a segmentation head
CLASS_BIASES = ("classifier.bias", "classifier.high_classifier.bias", "classifier.low_classifier.bias")

DETECTOR_BIAS, FIRST_BOXES = "classes.0.1.bias", 3


def class_count(entries: Mapping[str, Sized]) -> int:
    """Outputs of the classifier, or of another head, in a state dict; 0 without one.

    A detector's first map has 3 boxes, each with a score for every class.
    """
    if DETECTOR_BIAS in entries:
        return len(entries[DETECTOR_BIAS]) // FIRST_BOXES
    return next((len(entries[name]) for name in CLASS_BIASES if name in entries), 0)


def network_as_stored(network: Network, entries: Container[str], metadata: Metadata | None, gate: float) -> Network:
    """``network`` changed to fit a state dict: its gate, batch norms or biases, with or without head and last map."""
    if network.detection is not None:
        return replace(network, gate=gate)
    if network.segmentation is not None:
        segmentation = metadata.segmentation if metadata and metadata.segmentation else network.segmentation
        return replace(network, segmentation=segmentation, gate=gate)
    bn_folded = metadata.bn_folded if metadata else "conv_stem.bias" in entries
    head = network.head if "conv_head.weight" in entries else 0
    last = network.last if f"{network.last_conv}.weight" in entries else 0
    return replace(network, bn_folded=bn_folded, last=last, head=head, gate=gate)


def mapping_of(metadata: Metadata | None, options: PortOptions, own: Path | None, source: str) -> VariantMapping:
    """The mapping that was asked for, that of a release (``own``), or that of the artifact's variant.

    Raises ArtifactError where it cannot be told, or the artifact is of another one.
    """
    said = metadata.variant if metadata else None
    if options.mapping is not None:
        mapping = load_mapping(Path(options.mapping))
    elif own is not None:
        mapping = load_mapping(own)
    elif options.variant is None and said is None:
        raise ArtifactError(f"{source}: not written by mnv3-port, so its variant is not known; name the variant")
    else:
        mapping = variant_mapping(options.variant or str(said))
    if said is not None and said != mapping.variant:
        raise ArtifactError(f"{source}: is a {said} artifact, not {mapping.variant}")
    return mapping


def variant_mapping(name: str) -> VariantMapping:
    """The mapping of a variant, by its name or timm's. Raises MappingError where there is none."""
    return load_variant(variant_named(name) or name)
