"""A program as a PyTorch module of few kinds of operations: what compilers for phones take whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.exports.operations import IMAGE, Operation, Program
from porter.network.padding import same_padding
from porter.network.spec import ACTIVATIONS

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, forms.function) for name, forms in ACTIVATIONS.items()},
    "gate": F.hardsigmoid,
}


class Plain(nn.Module):
    """(N, channels, H, W) float32 -> (N, classes), the images of one size: SAME padding is written in numbers.

    Dense layers are 1x1 convolutions: ExecuTorch's XNNPACK backend takes a network of convolutions alone as one piece.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.operations = program.operations
        for number, operation in enumerate(program.operations):
            if operation.weight is not None:
                weight, bias = torch.from_numpy(operation.weight), torch.from_numpy(operation.bias)
                self.register_buffer(f"weight_{number}", weight.reshape(*weight.shape[:2], *weight.shape[2:] or (1, 1)))
                self.register_buffer(f"bias_{number}", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        values = {IMAGE: x}
        for number, operation in enumerate(self.operations):
            x = self._run(number, operation, [values[name] for name in operation.inputs])
            values[operation.output] = x
        return x.flatten(1)

    def _run(self, number: int, operation: Operation, given: list[Tensor]) -> Tensor:
        if operation.kind == "mean":
            return given[0].mean((2, 3), keepdim=True)
        if operation.kind == "flatten":  # at the end
            return given[0]
        if operation.kind in ("add", "multiply"):
            return given[0] + given[1] if operation.kind == "add" else given[0] * given[1]
        x, weight = given[0], self.get_buffer(f"weight_{number}")
        stride, dilation = operation.stride, operation.dilation
        sides = zip(x.shape[2:], weight.shape[2:], strict=True)
        (top, bottom), (left, right) = (same_padding(side, kernel, stride, dilation) for side, kernel in sides)
        padding = (top, left)
        if (top, left) != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        bias = self.get_buffer(f"bias_{number}")
        x = F.conv2d(x, weight, bias, stride, padding, dilation, operation.groups)
        return ACTIVATION_FUNCTIONS[operation.activation](x) if operation.activation else x
