"""What every reference offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from porter.images import Size
from porter.parity.samples import Sample

Endpoints = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Reference:
    """A computation to compare with.

    ``run`` takes (N, H, W, C) images and endpoint names in the order of computation, and gives those that it has, NHWC,
    one at a time: a caller that drops them never holds more than one. ``size`` is the only size it takes, None for any.
    ``samples`` are its own inputs where it can run no others. ``prepare`` makes of images what its network gets to see.
    ``keep`` bounds the values recorded per image, 0 where all are there.
    """

    name: str
    run: Callable[[np.ndarray, Sequence[str]], Endpoints]
    dtype: str = "float32"
    size: Size | None = None
    samples: tuple[Sample, ...] = ()
    keep: int = 0
    prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images


def thin(values: np.ndarray, keep: int) -> np.ndarray:
    """(N, ...) flattened per image, then every k-th value, k = max(1, size // keep)."""
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(1, flat.shape[1] // keep)]
