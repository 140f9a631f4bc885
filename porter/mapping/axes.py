"""Axis orders of TensorFlow's variables, and their conversion to those of state-dict entries and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from porter.network.node import Shape

if TYPE_CHECKING:
    import numpy as np


class Axes(NamedTuple):
    """``order``: the source's axes in PyTorch's order. A ``matrix`` of four axes drops the last two, of size 1."""

    order: tuple[int, ...]
    matrix: bool = False


AXES = {
    "conv": Axes((3, 2, 0, 1)),  # HWIO -> OIHW
    "depthwise": Axes((2, 3, 0, 1)),  # H,W,C,1 -> C,1,H,W
    "dense": Axes((3, 2, 0, 1), matrix=True),  # 1,1,I,O -> O,I
    "conv_ohwi": Axes((0, 3, 1, 2)),  # OHWI -> OIHW
    "depthwise_1hwc": Axes((3, 0, 1, 2)),  # 1,H,W,C -> C,1,H,W
    "dense_ohwi": Axes((0, 3, 1, 2), matrix=True),  # O,1,1,I -> O,I
    "dense_io": Axes((1, 0)),  # I,O -> O,I
    "vector": Axes((0,)),
    "batch_norm": Axes((0,)),  # a vector each
}
Layout = Literal[
    "conv", "depthwise", "dense", "conv_ohwi", "depthwise_1hwc", "dense_ohwi", "dense_io", "vector", "batch_norm"
]


def source_shape(layout: str, shape: Shape) -> Shape:
    """The shape of the variable that becomes an entry of ``shape``. Raises ValueError if none does."""
    order, matrix = AXES[layout]
    ordered = (*shape, 1, 1) if matrix else shape
    if len(ordered) != len(order):
        raise ValueError(f"layout {layout} gives {len(order) - 2 * matrix} axes, the entry has {len(shape)}")
    sizes = dict(zip(order, ordered, strict=True))
    return tuple(sizes[axis] for axis in range(len(order)))


def to_target(layout: str, values: np.ndarray) -> np.ndarray:
    """Reorder ``values`` from TensorFlow's axes to PyTorch's; a view."""
    order, matrix = AXES[layout]
    ordered = values.transpose(order)
    return ordered[:, :, 0, 0] if matrix else ordered


def to_source(layout: str, values: np.ndarray) -> np.ndarray:
    """The inverse of ``to_target``."""
    order, matrix = AXES[layout]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return (values[:, :, None, None] if matrix else values).transpose(inverse)
