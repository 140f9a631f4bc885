"""Layout changes between TensorFlow's variables and PyTorch's state-dict entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RANKS = {"conv": 4, "depthwise": 4, "dense": 4, "vector": 1, "batch_norm": 1}


def target_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The PyTorch shape of a variable of ``shape``."""
    if layout == "conv":  # HWIO -> OIHW
        height, width, channels_in, out = shape
        return (out, channels_in, height, width)
    if layout == "depthwise":  # HW,C,multiplier -> C*multiplier,1,HW
        height, width, channels, multiplier = shape
        return (channels * multiplier, 1, height, width)
    if layout == "dense":  # 1,1,I,O -> O,I
        return (shape[3], shape[2])
    return shape


def to_source(layout: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``to_target``: PyTorch's ``values`` as TensorFlow's variable of ``shape``."""
    if layout == "conv":
        return values.transpose(2, 3, 1, 0)
    if layout == "depthwise":
        height, width, channels, multiplier = shape
        return values.reshape(channels, multiplier, height, width).transpose(2, 3, 0, 1)
    if layout == "dense":
        return values.T.reshape(shape)
    return values


def to_target(layout: str, values: np.ndarray) -> np.ndarray:
    """Reorder ``values`` from TensorFlow's layout to PyTorch's; a view where possible."""
    if layout == "conv":
        return values.transpose(3, 2, 0, 1)
    if layout == "depthwise":
        return values.transpose(2, 3, 0, 1).reshape(target_shape(layout, values.shape))
    if layout == "dense":
        return values.reshape(values.shape[2:]).T
    return values
