"""Which mapping an artifact belongs to."""

from __future__ import annotations

from pathlib import Path

from porter.artifacts.metadata import Metadata
from porter.errors import ArtifactError
from porter.mapping.files import load_mapping, load_variant, variant_named
from porter.mapping.options import PortOptions
from porter.mapping.schema import VariantMapping


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
