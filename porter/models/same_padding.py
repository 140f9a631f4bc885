"""TensorFlow's SAME padding in PyTorch, exact for every size, stride, dilation and kernel.

PyTorch's own ``padding="same"`` refuses strides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.network.padding import same_padding


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` (NCHW, weight OIHW) with SAME padding; also depthwise, through ``groups``."""

    def __init__(
        self,
        channels_in: int,
        out: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(channels_in, out, kernel, stride, 0, dilation, groups, bias)
        # At stride 1 the padding does not depend on the size; where it is symmetric as well, the
        # convolution itself can pad, which saves a copy of the input.
        fixed = [same_padding(1, k, 1, d) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        self.pads_itself = self.stride == (1, 1) and all(before == after for before, after in fixed)
        if self.pads_itself:
            self.padding = tuple(before for before, _ in fixed)

    def forward(self, input: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))."""
        if self.pads_itself:
            return self._conv_forward(input, self.weight, self.bias)
        top, bottom = self._padding(input, 0)
        left, right = self._padding(input, 1)
        if self.dilation == (1, 1) and not torch.compiler.is_compiling():
            weight = F.pad(self.weight, (right - left, 0, bottom - top, 0))
            return F.conv2d(input, weight, self.bias, self.stride, (bottom, right), 1, self.groups)
        input = F.pad(input, (left, right, top, bottom))
        return self._conv_forward(input, self.weight, self.bias)

    def _padding(self, input: Tensor, axis: int) -> tuple[int, int]:
        return same_padding(input.shape[2 + axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis])
