"""What a source was quantised to: 256 levels between two limits, and how its integer kernels round."""

from __future__ import annotations

from msgspec import Struct


class Range(Struct, frozen=True, omit_defaults=True):
    """Limits of one tensor, in the float values that the levels stand for; training knows no more.

    The rest is TensorFlow Lite's integer arithmetic. ``scale`` is the distance of levels as stored. A kernel adds up
    integers that stand for ``unit`` each and brings them to levels with the fixed-point ``multiplier``, rounding
    ties away from zero or (``ties_away`` 0) upwards. Hard swish works on levels of its input, ``input_scale`` apart
    from ``input_min`` on.
    """

    min: float
    max: float
    scale: float | None = None
    unit: float | None = None
    multiplier: float | None = None
    ties_away: float = 0.0
    input_min: float | None = None
    input_scale: float | None = None


FIELDS = Range.__struct_fields__
