"""What every reference offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from porter.parity.samples import Sample, Size

Endpoints = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """A computation to compare with.

    ``run`` takes (N, H, W, C) images and gives every endpoint by name, NHWC, in the order of computation. ``size`` is
    the only size it takes, None for any. ``samples`` are its own inputs where it can run no others. ``prepare`` makes
    of images what its network gets to see. ``keep`` bounds the values recorded per image, 0 where all are there.
    """

    name: str
    run: Callable[[np.ndarray], Endpoints]
    dtype: str = "float32"
    size: Size | None = None
    samples: tuple[Sample, ...] = ()
    keep: int = 0
    prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images


def thin(values: np.ndarray, keep: int) -> np.ndarray:
    """(N, ...) flattened per image, then every k-th value, k = max(1, size // keep)."""
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(1, flat.shape[1] // keep)]
