"""Comparing one endpoint with its reference: the two questions, and the limits of their answers.

docs/verification.md derives the limits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from porter.parity.candidates.candidate import Output
from porter.parity.references.reference import Noise, Values
from porter.text import plain

# The same function? Both sides in float64: the largest difference over the layer's scale. One operation rounds by
# 1e-16; through all layers that grows to about 1e-14.
SAME_FUNCTION = 1e-12

# As exact? The limit of the port's float32 error is this multiple of the reference's. One side sums in up to 16 lanes,
# the other one by one, so errors differ by up to sqrt(16) (root mean square); the largest varies twice as much.
RMS_MULTIPLE, LARGEST_MULTIPLE = 4.0, 8.0
# Smaller errors, in units in the last place of the layer's scale, always pass: a layer rounds six times by half a unit
# (convolution, batch norm twice, activation, multiplication, addition).
ULP = 2.0**-23
RMS_FLOOR, LARGEST_FLOOR = 1 * ULP, 4 * ULP
# The root mean square of n errors varies by 1 / sqrt(2n) of itself, and so the logarithm of the ratio of two by
# 1 / sqrt(n). Limits have this many of these deviations more: 15 x for a pair of values, 1.1 x for a thousand
DEVIATIONS = 4.0
# Float64 rounds by this much of float32's rounding. What multiplies the one (cancellation) multiplies the other
DOUBLE = 2.0**-29

NO_NOISE = Noise(0.0, 0.0)

# 8 bits: the same level or not. Levels are 1 / 255 of the scale apart, float32 numbers 1e-7
SAME_LEVEL = 1e-6

# Limits for old records, which hold float32 values of unknown error
RECORDED_LOGITS, RECORDED_ENDPOINTS = 1e-5, 2e-5


class Row(NamedTuple):
    """How far one endpoint is from its reference. Distances are over ``scale``, the largest |reference|.

    ``function``: the largest float64 difference (of levels for 8 bits); the same function if at most
    ``function_limit``. ``port`` and ``reference``: each side's float32 error against the float64 values. ``allowed``:
    the limit of ``port``. None: not asked, or not available. ``worst``: index of the largest difference (NHWC).
    ``port_name``: a foreign port's name for the endpoint.
    """

    endpoint: str
    sample: str
    shape: tuple[int, ...]
    scale: float
    function: float | None
    function_limit: float
    port: Noise | None
    reference: Noise | None
    allowed: Noise | None
    worst: tuple[int, ...]
    port_name: str | None = None

    @property
    def same_function(self) -> bool | None:
        """The answer to the first question; NaN counts as no."""
        return None if self.function is None else self.function <= self.function_limit

    @property
    def as_exact(self) -> bool | None:
        """The answer to the second question; NaN counts as no."""
        if self.port is None or self.allowed is None:
            return None
        return self.port.rms <= self.allowed.rms and self.port.largest <= self.allowed.largest

    @property
    def passed(self) -> bool:
        """True if every question that was asked is answered yes."""
        answers = (self.same_function, self.as_exact)
        return False not in answers and True in answers

    @property
    def noise_ratio(self) -> float | None:
        """The port's float32 error over the reference's (root mean squares); None if unknown, or the latter is 0."""
        if self.port is None or self.reference is None or not self.reference.rms:
            return None
        return self.port.rms / self.reference.rms

    @property
    def rms_limit(self) -> float:
        """The limit of ``noise_ratio``: RMS_MULTIPLE, or more if the reference's own error is below the floor."""
        if self.allowed is None or self.reference is None or not self.reference.rms:
            return math.inf
        return self.allowed.rms / self.reference.rms

    @property
    def excess(self) -> float:
        """The largest ratio of a figure to its limit: above 1 if the row fails, infinite for NaN."""
        shares = [] if self.function is None else [self.function / self.function_limit]
        if self.port is not None and self.allowed is not None:
            shares += [self.port.rms / self.allowed.rms, self.port.largest / self.allowed.largest]
        return max((share if math.isfinite(share) else math.inf for share in shares), default=math.inf)

    @property
    def distance(self) -> float:
        """The largest difference for the question that failed, else for the first one asked."""
        if self.function is not None and (self.same_function is False or self.port is None or self.as_exact):
            return self.function
        return self.port.largest if self.port is not None else math.nan

    def with_rounded_weights(self) -> Row:
        """The row for rounded weights: float64 values may then differ by as much as float32 values."""
        return self if self.allowed is None else self._replace(function_limit=self.allowed.largest)

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN and infinity become None, as JSON has neither."""
        return plain(
            {
                "endpoint": self.endpoint,
                "port_name": self.port_name,
                "sample": self.sample,
                "shape": self.shape,
                "scale": self.scale,
                "function": self.function,
                "function_limit": self.function_limit,
                "same_function": self.same_function,
                "port_error": self.port and self.port._asdict(),
                "reference_error": self.reference and self.reference._asdict(),
                "allowed_error": self.allowed and self.allowed._asdict(),
                "as_exact": self.as_exact,
                "worst": self.worst,
                "passed": self.passed,
            }
        )


def compare(
    endpoint: str,
    sample: str,
    reference: Values,
    port_output: Output,
    function_limit: float = SAME_FUNCTION,
    inherited: Noise = NO_NOISE,
    scale: float | None = None,
) -> Row:
    """Measure a port against ``reference`` at one endpoint (same shape, NHWC).

    Fields of ``port_output`` that are None are not compared. ``inherited`` is the reference's largest float32 error,
    over the scale, at an earlier endpoint: this one is computed from it. ``scale`` is by default the largest
    |reference|. Raises ValueError if the shapes differ.
    """
    values, noise = reference.values.astype(np.float64), reference.noise
    exact, single, known = port_output
    for ours in (exact, single):
        if ours is not None and ours.shape != values.shape:
            raise ValueError(f"{endpoint}: shape {ours.shape}, the reference has {values.shape}")
    scale = float(np.abs(values).max(initial=0.0)) if scale is None else scale
    unit = scale or 1.0  # an endpoint of zeros: the difference itself
    function = theirs = allowed = None
    port = None if known is None else Noise(known.rms / unit, known.largest / unit)
    worst = 0
    if noise is not None:
        theirs = Noise(noise.rms / unit, noise.largest / unit)
        few = math.exp(DEVIATIONS / math.sqrt(max(1, values.size)))
        allowed = Noise(
            few * RMS_MULTIPLE * max(theirs.rms, inherited.rms, RMS_FLOOR),
            few * LARGEST_MULTIPLE * max(theirs.largest, inherited.largest, LARGEST_FLOOR),
        )
        if function_limit == SAME_FUNCTION:
            function_limit = max(function_limit, DOUBLE * allowed.largest)
    if single is not None and noise is not None:
        difference = np.abs(single.astype(np.float64) - values)
        port = Noise(float(np.sqrt(np.mean(np.square(difference)))) / unit, _largest(difference) / unit)
        worst = int(difference.argmax())  # the first NaN, where there is one
    if exact is not None:
        difference = np.abs(exact.astype(np.float64) - values)
        function = _largest(difference) / unit
        if port is None or not function <= function_limit:
            worst = int(difference.argmax())
    return Row(
        endpoint=endpoint,
        sample=sample,
        shape=values.shape,
        scale=scale,
        function=function,
        function_limit=function_limit,
        port=port,
        reference=theirs,
        allowed=allowed,
        worst=tuple(int(i) for i in np.unravel_index(worst, values.shape)),
    )


def _largest(difference: np.ndarray) -> float:
    return float(difference.max(initial=0.0))  # NaN where there is one


def top_k(logits: np.ndarray, k: int) -> list[set[int]]:
    """The ``k`` highest classes of each row of (N, classes)."""
    return [set(row[:k].tolist()) for row in np.argsort(-logits, axis=1)]
