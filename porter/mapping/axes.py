"""Axis orders of TensorFlow's variables, and how each becomes that of a state-dict entry and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]


class Axes(NamedTuple):
    """``order`` of the source's axes in PyTorch; then axes are ``merged``.

    ``channels``: the first two into one, with a second of 1 (a depthwise kernel's multiplier); ``matrix``: the last
    two, of size 1, are dropped.
    """

    order: tuple[int, ...]
    merged: Literal["none", "channels", "matrix"] = "none"


AXES = {
    "conv": Axes((3, 2, 0, 1)),  # HWIO -> OIHW
    "depthwise": Axes((2, 3, 0, 1), "channels"),  # H,W,C,multiplier -> C*multiplier,1,H,W
    "dense": Axes((3, 2, 0, 1), "matrix"),  # 1,1,I,O -> O,I
    "conv_ohwi": Axes((0, 3, 1, 2)),  # OHWI -> OIHW
    "depthwise_1hwc": Axes((3, 0, 1, 2)),  # 1,H,W,C -> C,1,H,W
    "dense_ohwi": Axes((0, 3, 1, 2), "matrix"),  # O,1,1,I -> O,I
    "vector": Axes((0,)),
    "batch_norm": Axes((0,)),  # a vector each
}


def rank(axes: str) -> int:
    """How many axes the source's variable has."""
    return len(AXES[axes].order)


def target_shape(axes: str, shape: Shape) -> Shape:
    """The PyTorch shape of a variable of ``shape``."""
    ordered = _reorder(axes, shape)
    if AXES[axes].merged == "channels":
        return (ordered[0] * ordered[1], 1, *ordered[2:])
    return ordered[:2] if AXES[axes].merged == "matrix" else ordered


def to_target(axes: str, values: np.ndarray) -> np.ndarray:
    """Reorder ``values`` from TensorFlow's axes to PyTorch's; a view where possible."""
    return values.transpose(AXES[axes].order).reshape(target_shape(axes, values.shape))


def to_source(axes: str, values: np.ndarray, shape: Shape) -> np.ndarray:
    """The inverse of ``to_target``: PyTorch's ``values`` as TensorFlow's variable of ``shape``."""
    order = AXES[axes].order
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return values.reshape(_reorder(axes, shape)).transpose(inverse)


def _reorder(axes: str, shape: Shape) -> Shape:
    return tuple(shape[axis] for axis in AXES[axes].order)
