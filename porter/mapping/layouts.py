"""Layout changes between TensorFlow's variables and PyTorch's state-dict entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RANKS = {
    "conv": 4, "depthwise": 4, "dense": 4, "conv_ohwi": 4, "depthwise_1hwc": 4, "dense_ohwi": 4,
    "vector": 1, "batch_norm": 1,
}  # fmt: skip


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
    if layout == "conv_ohwi":  # OHWI -> OIHW
        out, height, width, channels_in = shape
        return (out, channels_in, height, width)
    if layout == "depthwise_1hwc":  # 1,H,W,C -> C,1,H,W
        _, height, width, channels = shape
        return (channels, 1, height, width)
    if layout == "dense_ohwi":  # O,1,1,I -> O,I
        return (shape[0], shape[3])
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
    if layout == "conv_ohwi":
        return values.transpose(0, 2, 3, 1)
    if layout == "depthwise_1hwc":
        return values.transpose(1, 2, 3, 0)
    if layout == "dense_ohwi":
        return values.reshape(shape)
    return values


def to_target(layout: str, values: np.ndarray) -> np.ndarray:
    """Reorder ``values`` from TensorFlow's layout to PyTorch's; a view where possible."""
    if layout == "conv":
        return values.transpose(3, 2, 0, 1)
    if layout == "depthwise":
        return values.transpose(2, 3, 0, 1).reshape(target_shape(layout, values.shape))
    if layout == "dense":
        return values.reshape(values.shape[2:]).T
    if layout == "conv_ohwi":
        return values.transpose(0, 3, 1, 2)
    if layout == "depthwise_1hwc":
        return values.transpose(3, 0, 1, 2)
    if layout == "dense_ohwi":
        return values.reshape(target_shape(layout, values.shape))
    return values
