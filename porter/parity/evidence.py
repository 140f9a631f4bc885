"""Evidence for a report: worst channels, where in the image a layer differs, and the classes guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from porter.parity.compare import Row

WORST_CHANNELS = 3  # kept per endpoint
PICTURES = 12
TOP = 5


class Channel(NamedTuple):
    """A channel of an endpoint: largest and mean |ours - reference| over images and positions."""

    channel: int
    max_abs: float
    mean_abs: float


class HeatMap(NamedTuple):
    """``values`` (H, W): the largest |ours - reference| over the channels of one image."""

    row: Row
    values: np.ndarray


class Picture(NamedTuple):
    """An input (H, W, 3) in [-1, 1], and each side's likeliest classes with their probabilities."""

    sample: str
    image: np.ndarray
    ours: list[tuple[int, float]]
    theirs: list[tuple[int, float]]


@dataclass
class Evidence:
    """Collected while ``verify`` runs.

    ``heat_map``: of the first endpoint, in the order of computation, that fails; if none fails, of the one furthest
    off. None if the reference was recorded in part.
    """

    classes: int = 0
    channels: dict[str, list[Channel]] = field(default_factory=dict)
    heat_map: HeatMap | None = None
    pictures: list[Picture] = field(default_factory=list)
    _furthest: dict[str, float] = field(default_factory=dict)

    def compared(self, row: Row, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Record one endpoint, (N, H, W, C) or (N, C)."""
        distance = row.excess
        if distance < self._furthest.get(row.endpoint, -1):
            return
        first_failing = self._is_first_failing(row)  # before this endpoint is known
        self._furthest[row.endpoint] = distance
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        flat = difference.reshape(-1, difference.shape[-1])
        largest, mean = flat.max(0), flat.mean(0)
        order = np.argsort(-np.nan_to_num(largest, nan=np.inf), kind="stable")[:WORST_CHANNELS]
        self.channels[row.endpoint] = [Channel(int(c), float(largest[c]), float(mean[c])) for c in order]
        if ours.ndim != 4 or max(ours.shape[1:3]) == 1:
            return
        shown = self.heat_map
        if first_failing or (shown is None) or (shown.row.passed and row.passed and distance > shown.row.excess):
            self.heat_map = HeatMap(row, difference[row.worst[0]].max(-1))

    def _is_first_failing(self, row: Row) -> bool:
        if row.passed:
            return False
        shown = self.heat_map
        if shown is None or shown.row.passed:
            return True
        known = list(self._furthest)  # in the order of computation, from the first sample
        return row.endpoint in known and known.index(row.endpoint) <= known.index(shown.row.endpoint)

    def classified(self, sample: str, images: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Record the logits (N, classes) of a sample."""
        self.classes = ours.shape[1]
        for image, one, other in zip(images, ours, theirs, strict=True):
            if len(self.pictures) < PICTURES:
                self.pictures.append(Picture(sample, image, _likeliest(one), _likeliest(other)))


def _likeliest(logits: np.ndarray) -> list[tuple[int, float]]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    chances = powers / powers.sum()
    return [(int(i), float(chances[i])) for i in np.argsort(-logits, kind="stable")[:TOP]]
