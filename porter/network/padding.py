"""How many zeros TensorFlow's SAME padding puts around a map."""

from __future__ import annotations


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one spatial axis of ``size`` pixels.

    TensorFlow pads so that ``out = ceil(in / stride)`` and puts the odd pixel at the end
    (tensorflow/core/framework/kernel_shape_util.cc). Written without ``max`` over the size where it is not needed, so
    that traced and exported graphs keep the size symbolic.
    """
    reach = dilation * (kernel - 1) + 1 - stride  # total padding where stride divides the size
    total = reach + (-size) % stride
    if reach < 0:
        total = max(total, 0)
    return total // 2, total - total // 2
