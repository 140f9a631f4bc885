"""The interface of references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.network.node import Size
from porter.network.spec import Input
from porter.parity.samples import Sample
from porter.photos.images import normalized

if TYPE_CHECKING:
    from porter.port import Port

# If the network sees fewer distinct values than a 4-bit photo has, it does not see the image that was asked for
FEWEST_VALUES = 16
# Constants of a preprocessing are rounded to float32, an error of 2^-24 each: of scale, offset, mean, variance. So are
# its operations in a graph of float32
PREPROCESSING = 2.0**-21
Precision = Literal["float64", "float32", "levels"]


class Noise(NamedTuple):
    """The error of a float32 computation at one endpoint: root mean square and largest, in the endpoint's units."""

    rms: float
    largest: float


class Values(NamedTuple):
    """A reference's result for one endpoint.

    ``values`` (NHWC, or (N, classes)): the most precise available, float64 or else float32. ``noise``: the error of the
    reference's own float32 computation against them (of a .tflite, the difference between its two sets of kernels);
    None if unknown.
    """

    values: np.ndarray
    noise: Noise | None = None


Endpoints = Iterator[tuple[str, Values]]


@dataclass(frozen=True)
class Reference:
    """A computation to compare with.

    ``run`` takes images (N, H, W, C) in [-1, 1] and endpoint names in the order of computation. It yields those that it
    has, one at a time, so that memory need hold only one. ``precision``: of the values; ``levels`` are 8-bit numbers,
    which a port matches exactly or not at all. ``size``: the only image size that it takes, None for any. ``samples``:
    its own inputs, if it can run no others. ``prepare`` turns such images into what its network sees, and the port
    should see. ``takes`` says in words what the reference itself gets. ``keep``: values recorded per image, 0 for all.
    ``missing``: endpoints of the network that the graph does not hold. ``versions``: of the packages that compute.
    """

    name: str
    run: Callable[[np.ndarray, Sequence[str]], Endpoints]
    precision: Precision = "float64"
    size: Size | None = None
    samples: tuple[Sample, ...] = ()
    keep: int = 0
    prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images
    missing: tuple[str, ...] = ()
    takes: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as the nearest 8-bit ones."""
    return np.round((images + 1) * 127.5).clip(0, 255).astype(np.uint8)


def for_port(images: np.ndarray, spec: Input, white: float | None, dtype: type[np.floating[Any]]) -> np.ndarray:
    """Images in [-1, 1] as the port gets them: 8-bit pixels by its preprocessing, computed in ``dtype``.

    A file that states no scaling (``white`` is None) takes the numbers themselves.
    """
    return images if white is None else normalized(as_pixels(images), spec.mean, spec.std, dtype=dtype)


def for_file(images: np.ndarray, white: float | None) -> np.ndarray:
    """Images in [-1, 1] as a file takes them that has the number ``white``, 255 or 1, for a white pixel; float64."""
    return images if white is None else as_pixels(images) * (white / 255)


def check_preprocessing(theirs: np.ndarray, images: np.ndarray, port: Port, path: object) -> None:
    """Raise ParityError unless a file makes ``theirs`` of ``images`` in [-1, 1] as the port does by its own numbers."""
    spec = port.mapping.input
    ours = for_port(images, spec, port.white, np.float64)
    scale = np.abs(ours).max() + np.abs(np.array(spec.mean) / spec.std).max()
    if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= PREPROCESSING * scale:
        raise ParityError(
            f"{path}: its own preprocessing gives its network {theirs.min():.4g} to {theirs.max():.4g} of shape "
            f"{theirs.shape[1:]}, the port's gives {ours.min():.4g} to {ours.max():.4g} of shape {ours.shape[1:]}"
        )


def told_pixels(white: float | None) -> str:
    """What a file gets, in words."""
    return "what the port gets" if white is None else f"8-bit pixels as numbers from 0 to {white:g}"


def noise_between(single: np.ndarray, exact: np.ndarray) -> Noise:
    """The error of ``single`` (float32) from ``exact``, of the same shape."""
    difference = single.astype(np.float64) - exact
    return Noise(float(np.sqrt(np.mean(np.square(difference)))), float(np.abs(difference).max(initial=0.0)))


def noise_of_dense(lengths: np.ndarray, inputs: Noise) -> Noise:
    """The error of sums that follows from independent errors of their terms; ``lengths`` are those of the weights.

    The sums of a few classes may be exact by luck, or cancel.
    """
    return Noise(inputs.rms * float(np.sqrt(np.mean(np.square(lengths)))), inputs.rms * float(lengths.max(initial=0.0)))


def over_scale(values: Values) -> Noise:
    """The error over the scale, the largest absolute value."""
    if values.noise is None:
        return Noise(0.0, 0.0)
    unit = float(np.abs(values.values).max(initial=0.0)) or 1.0
    return Noise(values.noise.rms / unit, values.noise.largest / unit)


def noise_of_softmax(chances: np.ndarray, logits: Noise) -> Noise:
    """The error of probabilities (N, classes) that follows from independent errors of the logits.

    Class i errs by p_i (e_i - sum of p_j e_j). If few classes have all of the probability, the error of one run is
    chance; this is its average.
    """
    squares = np.square(chances)
    spread = np.sqrt(squares * (np.square(1 - chances) + squares.sum(1, keepdims=True) - squares))
    return Noise(logits.rms * float(np.sqrt(np.mean(np.square(spread)))), logits.rms * float(spread.max()))


def larger(one: Noise, other: Noise) -> Noise:
    """The larger of both figures, each by itself."""
    return Noise(max(one.rms, other.rms), max(one.largest, other.largest))


def thin(values: np.ndarray, keep: int) -> np.ndarray:
    """(N, ...) flattened per image, then every k-th value, k = max(1, size // keep)."""
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(1, flat.shape[1] // keep)]
