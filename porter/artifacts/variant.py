"""Which mapping an artifact belongs to."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sized
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from porter.artifacts.metadata import Metadata
from porter.errors import ArtifactError, Option
from porter.mapping.files import load_mapping, load_variant, variant_named
from porter.mapping.options import PortOptions
from porter.mapping.schema import VariantMapping
from porter.network.network import HEADS, Network, build_network
from porter.network.nodes import check_needs, nodes, state_dict_shapes

if TYPE_CHECKING:
    import numpy as np

# Biases with values for classes, and how many there are for each: of a classifier, and of each head
CLASS_BIASES = {"classifier.bias": 1} | {head.CLASS_BIAS: head.VALUES_PER_CLASS for head in HEADS}

# ... and of a classifier of several layers, some of which are batch norms
TAIL_BIAS = re.compile(r"classifier\.(\d{1,4})\.bias")


def class_count(entries: Mapping[str, Sized]) -> int:
    """Outputs of the classifier, or of another head, in a state dict; 0 without one."""
    for name, each in CLASS_BIASES.items():
        if name in entries:
            return len(entries[name]) // each
    tail = [found[1] for name in entries if (found := TAIL_BIAS.fullmatch(name))]
    dense = [int(number) for number in tail if f"classifier.{number}.running_mean" not in entries]
    return len(entries[f"classifier.{max(dense)}.bias"]) if dense else 0


def network_as_stored(network: Network, entries: Container[str], metadata: Metadata | None, gate: float) -> Network:
    """``network`` changed to fit a state dict: its gate, batch norms or biases, with or without head and last map."""
    bn_folded = metadata.bn_folded if metadata else f"{nodes(network, classes=0)[0].layer}.bias" in entries
    if network.head is not None:
        head = (metadata.head if metadata else None) or network.head
        return replace(network, head=head, bn_folded=bn_folded, gate=gate)
    embedding = network.embedding if network.pools_in_layers and "conv_head.weight" in entries else 0
    last = network.last if f"{network.last_conv}.weight" in entries else 0
    return replace(network, bn_folded=bn_folded, last=last, embedding=embedding, gate=gate)


def mapping_of(metadata: Metadata | None, options: PortOptions, own: Path | None, source: str) -> VariantMapping:
    """The mapping that was asked for, that of a release (``own``), or that of the artifact's variant.

    With what the artifact's source stated otherwise.

    Raises ArtifactError where nothing says which, or the artifact is of another variant.
    """
    said = metadata.variant if metadata else None
    if options.mapping is not None:
        mapping = load_mapping(Path(options.mapping))
    elif own is not None:
        mapping = load_mapping(own)
    elif options.variant is None and said is None:
        raise ArtifactError(f"{source}: not written by mnv3-port, so its variant is not known; name the variant")
    elif options.variant is None and variant_named(str(said)) is None:
        raise ArtifactError(
            f"{source}: was made with a mapping file of its own, of {said}, which is needed; use",
            option=Option("mapping", "FILE"),
        )
    else:
        mapping = load_variant(options.variant or str(said))
    if said is not None and said != mapping.variant:
        raise ArtifactError(f"{source}: is a {said} artifact, not {mapping.variant}")
    if metadata is None:
        return mapping
    stated = metadata.stated.applied(mapping)
    try:
        check_needs(build_network(stated), stated.input)
    except ValueError as error:
        raise ArtifactError(f"{source}: its metadata states an impossible network: {error}") from error
    return stated


def check_fits(network: Network, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Raise ArtifactError where ``network`` is much larger than the weights: it is not even made then."""
    needed = sum(prod(shape) for shape in state_dict_shapes(network, class_count(arrays)).values())
    held = sum(values.size for values in arrays.values())
    if needed > 2 * held + (1 << 20):
        raise ArtifactError(
            f"{source}: does not fit the network, which has {needed:,} values; the file holds {held:,}. Is the mapping "
            "that of these weights?"
        )


def check_classifier(network: Network, entries: Container[str], source: str) -> None:
    """Raise ArtifactError for a classifier of several layers where nothing says what is between them."""
    if not network.tail and "classifier.0.weight" in entries and network.head is None:
        raise ArtifactError(
            f"{source}: its classifier has several layers, and nothing in the file says what is between them. Where it "
            "was made, torch.save(model.state_dict(), ...) of a model of create_model says it"
        )
