"""Comparing one endpoint with its reference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """How far one endpoint is from its reference.

    ``max_rel`` is max |ours - reference| over max |reference|, the scale of the layer. ``worst`` is the
    index of the largest difference in the reference's layout (NHWC).
    """

    endpoint: str
    sample: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float
    worst: tuple[int, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within tolerance; NaN never is."""
        return self.max_rel <= self.tolerance


def compare(endpoint: str, sample: str, ours: np.ndarray, reference: np.ndarray, tolerance: float) -> Row:
    """Measure ``ours`` against ``reference`` (same shape, NHWC) in float64.

    Raises ValueError when the shapes differ.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"{endpoint}: shape {ours.shape}, the reference has {reference.shape}")
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(ours - reference)
    # argmax takes the first NaN for the maximum, so a NaN shows as the worst element
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    max_abs = float(difference[worst])
    scale = float(np.abs(reference).max())
    norms = float(np.linalg.norm(ours) * np.linalg.norm(reference))
    return Row(
        endpoint=endpoint,
        sample=sample,
        shape=reference.shape,
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else max_abs,
        mean_abs=float(difference.mean()),
        cosine=float(np.vdot(ours, reference)) / norms if norms else float(max_abs == 0),
        worst=tuple(int(i) for i in worst),
        tolerance=tolerance,
    )


def top_k(logits: np.ndarray, k: int) -> list[set[int]]:
    """The ``k`` highest classes of each row of (N, classes)."""
    return [set(row[:k].tolist()) for row in np.argsort(-logits, axis=1)]
