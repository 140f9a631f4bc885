"""Quantisation ranges: 256 levels between two limits, and how integer kernels round to them."""

from __future__ import annotations

from msgspec import Struct


class Range(Struct, frozen=True, omit_defaults=True):
    """Limits of one tensor, in the float values that the levels stand for; training knows no more.

    The rest is TensorFlow Lite's integer arithmetic. ``scale`` is the distance of levels as stored. A kernel adds up
    integers that stand for ``unit`` each and brings them to levels with the fixed-point ``multiplier`` (one of each for
    every channel, where the weights have a scale for every channel), rounding ties away from zero or (``ties_away`` 0)
    upwards. Hard swish works on levels of its input, ``input_scale`` apart
    from ``input_min`` on; a mean, on levels ``input_scale`` apart of which number ``input_zero`` stands for 0. An
    addition works on levels of the block's input, ``skip_scale`` apart, and of its last convolution, ``branch_scale``
    apart.
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
    skip_scale: float | None = None
    branch_scale: float | None = None


def levels(limits: Range) -> tuple[float, int]:
    """The distance of the 256 levels, and which of them stands for 0.

    Where the distance is not stored, it is worked out in float32, as FakeQuantWithMinMaxVars does (Nudge of
    tensorflow/core/kernels/fake_quant_ops_functor.h).
    """
    import numpy as np

    if limits.scale is not None:
        return limits.scale, -round(limits.min / limits.scale)
    low, high = np.float32(limits.min), np.float32(limits.max)
    scale = (high - low) / np.float32(255)
    return float(scale), int(np.clip(np.floor(-low / scale + np.float32(0.5)), 0, 255))


FIELDS = Range.__struct_fields__
