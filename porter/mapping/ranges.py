"""Quantisation ranges: 256 levels between two limits, and how integer kernels round to them."""

from __future__ import annotations

from msgspec import Struct

LEAST_STEP, MOST_LIMIT = 2.0**-100, 2.0**100  # far beyond what training gives, and within float32
MOST_LEVEL = 2.0**31  # integer kernels have 32 bits


class Range(Struct, frozen=True, omit_defaults=True):
    """Limits of one tensor, in the float values that its levels stand for; training knows no more.

    The other fields are TensorFlow Lite's integer arithmetic. ``scale``: the distance between levels, as stored. A
    kernel sums integers of ``unit`` each and converts the sum to levels with the fixed-point ``multiplier`` (both per
    channel if the weights' scales are). It rounds ties away from zero, or upwards if ``ties_away`` is 0. Hard swish
    takes input levels ``input_scale`` apart, from ``input_min`` on. A mean takes levels ``input_scale`` apart, where
    level ``input_zero`` stands for 0; ``axes_dropped`` is 1 where it gives (N, C), by a kernel that takes the zeros
    away before it rounds. An addition takes levels of the block's input, ``skip_scale`` apart, and of its last
    convolution, ``branch_scale`` apart.
    """

    min: float
    max: float
    scale: float | None = None
    unit: float | list[float] | None = None
    multiplier: float | list[float] | None = None
    ties_away: float = 0.0
    input_min: float | None = None
    input_scale: float | None = None
    input_zero: float | None = None
    axes_dropped: float = 0.0
    skip_scale: float | None = None
    branch_scale: float | None = None


def check_range(limits: Range, what: str) -> None:
    """Raise ValueError, beginning with ``what``, where ``limits`` have no 256 levels in float32."""
    units = [limits.unit, limits.multiplier, limits.scale, limits.input_scale, limits.skip_scale, limits.branch_scale]
    steps = [one for unit in units if unit is not None for one in (unit if isinstance(unit, list) else [unit])]
    if not all(LEAST_STEP <= one < MOST_LIMIT for one in [*steps, (limits.max - limits.min) / 255]):
        raise ValueError(f"{what}: the range from {limits.min:g} to {limits.max:g} has no 256 levels")
    zeros = [
        limits.min / (limits.scale or 1),
        limits.input_zero or 0,
        (limits.input_min or 0) / (limits.input_scale or 1),
    ]
    if not all(abs(one) < MOST_LEVEL for one in zeros):
        raise ValueError(f"{what}: 0 is no level of 32 bits; damaged")


def levels(limits: Range) -> tuple[float, int]:
    """The distance between the 256 levels, and the level that stands for 0.

    If the distance is not stored, it is computed in float32, as in FakeQuantWithMinMaxVars (Nudge in
    tensorflow/core/kernels/fake_quant_ops_functor.h).
    """
    import numpy as np

    if limits.scale is not None:
        return limits.scale, -round(limits.min / limits.scale)
    low, high = np.float32(limits.min), np.float32(limits.max)
    scale = (high - low) / np.float32(255)
    return float(scale), int(np.clip(np.floor(-low / scale + np.float32(0.5)), 0, 255))


FIELDS = Range.__struct_fields__
