"""A program as a PyTorch module of few kinds of operations: what compilers for phones take whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.exports.program import Program
from porter.network.node import IMAGE, Node, same_padding
from porter.network.spec import TAIL_ACTIVATIONS

ACTIVATION_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(F, forms.function) for name, forms in TAIL_ACTIVATIONS.items()},
    "gate": F.hardsigmoid,
}


class Plain(nn.Module):
    """(N, channels, H, W) float32 -> (N, classes), the images of one size: SAME padding is written in numbers.

    Dense layers are 1x1 convolutions: ExecuTorch's XNNPACK backend takes a network of convolutions as one piece.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.nodes = program.nodes
        for number, node in enumerate(program.nodes):
            if node.name in program.weights:
                weight, bias = (torch.from_numpy(values) for values in program.weights[node.name])
                axes = (1,) * (3 if node.operation == "batch_norm" else 4)
                self.register_buffer(f"weight_{number}", weight.reshape(*weight.shape, *axes[weight.ndim :]))
                self.register_buffer(f"bias_{number}", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        values = {IMAGE: x}
        for number, node in enumerate(self.nodes):
            x = self._run(number, node, [values[name] for name in node.inputs])
            values[node.name] = x
        return x.flatten(1)

    def _run(self, number: int, node: Node, given: list[Tensor]) -> Tensor:
        if node.operation == "mean":
            return given[0].mean((2, 3), keepdim=True)
        if node.operation == "max":
            return given[0].amax((2, 3), keepdim=True)
        if node.operation == "flatten":
            return given[0].permute(0, 2, 3, 1).flatten(1)[:, :, None, None]
        if node.operation == "activation":
            assert node.activation is not None
            slope = (node.slope,) if node.slope else ()
            return ACTIVATION_FUNCTIONS[node.activation](given[0], *slope)
        if node.operation in ("add", "multiply"):
            return given[0] + given[1] if node.operation == "add" else given[0] * given[1]
        x, weight = given[0], self.get_buffer(f"weight_{number}")
        if node.operation == "batch_norm":
            return x * weight + self.get_buffer(f"bias_{number}")[:, None, None]
        sides = zip(x.shape[2:], weight.shape[2:], strict=True)
        (top, bottom), (left, right) = (same_padding(side, k, node.stride, node.dilation) for side, k in sides)
        padding = (top, left)
        if (top, left) != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        bias = self.get_buffer(f"bias_{number}")
        x = F.conv2d(x, weight, bias, node.stride, padding, node.dilation, node.groups)
        return ACTIVATION_FUNCTIONS[node.activation](x) if node.activation else x
