"""The interface of references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from porter.network.node import Size
from porter.parity.samples import Sample

Precision = Literal["float64", "float32", "levels"]


class Noise(NamedTuple):
    """A float32 computation's own error at one endpoint: root mean square and largest, in the endpoint's units."""

    rms: float
    largest: float


class Values(NamedTuple):
    """What a reference gives for one endpoint.

    ``values`` (NHWC, or (N, classes)) are the most precise that it has: float64, or float32 where it has no other.
    ``noise`` is how far its own float32 computation is from them (for a .tflite: how far its two sets of kernels are
    from each other); None where that is not known.
    """

    values: np.ndarray
    noise: Noise | None = None


Endpoints = Iterator[tuple[str, Values]]


@dataclass(frozen=True)
class Reference:
    """A computation to compare with.

    ``run`` takes (N, H, W, C) images in [-1, 1] and endpoint names in the order of computation, and gives those that it
    has, one at a time: a caller that drops them never holds more than one. ``precision`` is that of the values:
    ``levels`` are 8-bit numbers, which a port meets exactly or not at all. ``size`` is the only size it takes, None for
    any. ``samples`` are its own inputs where it can run no others. ``prepare`` makes of such images what its network
    gets to see, and a port should. ``keep`` bounds the values recorded per image, 0 where all are there. ``missing``
    are endpoints of the network that a graph does not hold; ``versions`` are those of the packages that compute.
    """

    name: str
    run: Callable[[np.ndarray, Sequence[str]], Endpoints]
    precision: Precision = "float64"
    size: Size | None = None
    samples: tuple[Sample, ...] = ()
    keep: int = 0
    prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images
    missing: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


def noise_between(single: np.ndarray, exact: np.ndarray) -> Noise:
    """The error of ``single`` (float32) from ``exact``, of the same shape."""
    difference = single.astype(np.float64) - exact
    return Noise(float(np.sqrt(np.mean(np.square(difference)))), float(np.abs(difference).max(initial=0.0)))


def noise_of_softmax(chances: np.ndarray, logits: Noise) -> Noise:
    """The error of probabilities (N, classes) that follows from independent errors of the logits.

    Class i errs by p_i (e_i - sum of p_j e_j). Where few classes have all of the probability, the error of one run is
    the luck of few numbers; this is what it is on average.
    """
    squares = np.square(chances)
    spread = np.sqrt(squares * (np.square(1 - chances) + squares.sum(1, keepdims=True) - squares))
    return Noise(logits.rms * float(np.sqrt(np.mean(np.square(spread)))), logits.rms * float(spread.max()))


def larger(one: Noise, other: Noise) -> Noise:
    """The larger of both figures of two errors."""
    return Noise(max(one.rms, other.rms), max(one.largest, other.largest))


def thin(values: np.ndarray, keep: int) -> np.ndarray:
    """(N, ...) flattened per image, then every k-th value, k = max(1, size // keep)."""
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(1, flat.shape[1] // keep)]
