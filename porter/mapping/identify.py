"""Which of the six variants a checkpoint is, from the shapes of its variables."""

from __future__ import annotations

from typing import NamedTuple

from porter.loaders import Checkpoint
from porter.mapping.files import VARIANTS, load_variant
from porter.mapping.network import build_network
from porter.mapping.plan import count_classes
from porter.mapping.rules import expected_variables


class Match(NamedTuple):
    """How well a variant fits: expected variables of the right shape, of all expected, and left over ones."""

    variant: str
    fitting: int
    expected: int
    classes: int

    @property
    def exact(self) -> bool:
        """Every expected variable is there in the right shape."""
        return self.fitting == self.expected


def match_variants(checkpoint: Checkpoint) -> list[Match]:
    """All six variants, best fit first."""
    matches = []
    for variant in VARIANTS:
        mapping = load_variant(variant)
        network = build_network(mapping)
        classes = count_classes(mapping, network, checkpoint)
        expected = expected_variables(mapping, network, classes)
        fitting = sum(e.source in checkpoint and checkpoint[e.source].shape == e.shape for e in expected)
        matches.append(Match(variant, fitting, len(expected), classes))
    return sorted(matches, key=lambda match: -match.fitting / match.expected)


def identify(checkpoint: Checkpoint) -> Match | None:
    """The variant that fits exactly, or None.

    A minimalistic network's variables are not a subset of the full one's: expansion widths or
    kernels differ, so at most one variant fits.
    """
    best = match_variants(checkpoint)[0]
    return best if best.exact else None
