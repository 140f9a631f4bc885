"""Identifying a checkpoint's variant and naming scheme from its names and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from porter.mapping.files import Names, list_variants, list_with_head, load_variant
from porter.mapping.plan import fit
from porter.sources import Checkpoint

# Naming schemes to try by format; formats not listed hold TensorFlow's variables
NAMES: dict[str, tuple[Names, ...]] = {
    "tflite": ("tflite",),
    "keras": ("keras", "keras2", "keras_unnamed"),
    "tfjs": ("tfjs", "keras2", "keras", "slim"),
}
TENSORFLOW_NAMES: tuple[Names, ...] = ("slim", "keras2", "keras", "garden")


class Match(NamedTuple):
    """How well a variant fits: how many of its ``expected`` variables are there in the right shape."""

    variant: str
    names: Names
    fitting: int
    expected: int
    classes: int

    @property
    def exact(self) -> bool:
        """True if every expected variable is there in the right shape."""
        return self.fitting == self.expected


def match_variants(checkpoint: Checkpoint, variants: Sequence[str] | None = None) -> list[Match]:
    """``variants`` (None: all), best fit first. Naming schemes are tried in turn until one fits exactly.

    A minimalistic network's variables are not a subset of the full one's: expansion widths or kernels differ, so at
    most one variant fits.
    """
    matches: list[Match] = []
    tried = NAMES.get(checkpoint.format, TENSORFLOW_NAMES)
    groups = [(names, variants or list_variants()) for names in tried]
    if not variants and "slim" in tried:
        groups.append(("slim", list_with_head()))
    for names, named in groups:
        for variant in named:
            mapping = load_variant(variant, names)
            _, classes, expected = fit(mapping, checkpoint)
            fitting = sum(e.source in checkpoint and checkpoint[e.source].shape == e.shape for e in expected)
            matches.append(Match(variant, names, fitting, len(expected), classes))
        if any(match.exact for match in matches):
            break
    return sorted(matches, key=lambda match: -match.fitting / match.expected)
