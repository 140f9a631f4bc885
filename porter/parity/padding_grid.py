"""SAME padding against TensorFlow over a grid of size x kernel x stride x dilation, dense and depthwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from porter.models.mobilenet_v3 import SameConv2d
from porter.network.node import Size
from porter.parity.references.live_tensorflow import tensorflow

SIZES: tuple[Size, ...] = (
    (1, 1), (1, 4), (2, 2), (2, 3), (3, 3), (4, 5), (5, 4), (6, 7), (7, 7), (8, 8),
    (9, 12), (13, 13), (14, 14), (15, 16), (17, 10), (24, 31), (28, 28), (33, 32), (11, 6), (1, 16),
)  # fmt: skip
KERNELS = (1, 2, 3, 4, 5, 7)
STRIDES = (1, 2, 3)
DILATIONS = (1, 2, 3)
CHANNELS, OUT = 4, 3
TOLERANCE = 1e-5  # of the output's scale, float32


class Cell(NamedTuple):
    """One combination; ``error`` is max |ours - TensorFlow| over the scale, infinite where shapes differ."""

    size: Size
    kernel: int
    stride: int
    dilation: int
    depthwise: bool
    error: float

    @property
    def passed(self) -> bool:
        """Within tolerance."""
        return self.error <= TOLERANCE


def padding_grid(sizes: tuple[Size, ...] = SIZES) -> Iterator[Cell]:
    """Run every combination through TensorFlow and ``SameConv2d``. Raises ParityError without TensorFlow."""
    tf = tensorflow(otherwise="")
    random = np.random.default_rng(0)
    for size, kernel, stride, dilation, depthwise in product(sizes, KERNELS, STRIDES, DILATIONS, (False, True)):
        images = random.standard_normal((1, *size, CHANNELS)).astype(np.float32)
        weights = random.standard_normal((kernel, kernel, CHANNELS, 1 if depthwise else OUT)).astype(np.float32)
        reference = _tensorflow_conv(tf, images, weights, stride, dilation, depthwise)
        ours = _our_conv(images, weights, stride, dilation, depthwise)
        if ours.shape == reference.shape:
            error = float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30))
        else:
            error = float("inf")
        yield Cell(size, kernel, stride, dilation, depthwise, error)


def _tensorflow_conv(
    tf: Any, images: np.ndarray, weights: np.ndarray, stride: int, dilation: int, depthwise: bool
) -> np.ndarray:
    strides, dilations = [1, stride, stride, 1], [1, dilation, dilation, 1]
    conv: Callable[..., Any] = tf.raw_ops.Conv2D
    if depthwise and dilation == 1:
        conv = tf.raw_ops.DepthwiseConv2dNative
    elif depthwise:  # TensorFlow cannot dilate a depthwise convolution on CPU: a dense one, diagonal
        weights = weights * np.eye(CHANNELS, dtype=np.float32)
    return conv(input=images, filter=weights, strides=strides, padding="SAME", dilations=dilations).numpy()


def _our_conv(images: np.ndarray, weights: np.ndarray, stride: int, dilation: int, depthwise: bool) -> np.ndarray:
    groups = CHANNELS if depthwise else 1
    conv = SameConv2d(CHANNELS, CHANNELS if depthwise else OUT, weights.shape[0], stride, dilation, groups)
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights.transpose(order))))
        return conv(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
