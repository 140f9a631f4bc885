"""The form for inference on CPU: batch norms folded, activations fused, SAME padding fixed for one image size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.mapping.network import Block
from porter.network.blocks import Gate
from porter.network.mobilenet_v3 import MobileNetV3
from porter.network.same_padding import same_padding

Attribute = Literal["none", "relu", "hardswish"]  # oneDNN's names of what may follow a convolution
Receive = Callable[[str, Tensor], None]
Size = tuple[int, int]  # height, width in pixels

# Up to so many positions (images x height x width), a matrix product and an activation in place are faster than
# oneDNN's fused 1x1 convolution, each call of which costs as much as a small layer
FEW_POSITIONS = 1024


def deploy(model: MobileNetV3, size: Size | int = 224) -> Deployed:
    """``model`` for inference on CPU, at one image size and any batch size: exact up to float32 rounding.

    The weights are copied; ``model`` stays as it is. Raises ValueError on a model that is not float32.
    """
    return Deployed(model, (size, size) if isinstance(size, int) else size)


class Deployed(nn.Module):
    """What ``deploy`` makes: (N, channels, H, W) float32 -> (N, num_classes), without gradients.

    ``receive``, where set, is handed every endpoint as it is computed, under TensorFlow's name. There is no state
    dict: weights are packed for this machine, so save ``model`` and deploy it anew.
    """

    def __init__(self, model: MobileNetV3, size: Size) -> None:
        super().__init__()
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
            raise ValueError("deploy takes a float32 model on the CPU")
        network = model.network
        self.network, self.num_classes, self.size = network, model.num_classes, size
        self.receive: Receive | None = None
        with torch.no_grad():
            self.stem = _Conv(model, "conv_stem", "bn1", "act1", size)
            self.steps: list[_Block] = []
            size = self.stem.size_after
            for block in network.blocks:
                self.steps.append(_Block(model, block, size))
                size = self.steps[-1].size_after
            self.last = _Conv(model, network.last_conv, network.last_norm, network.last_act, size)
            self.positions = size[0] * size[1]
            self.products: list[_Product] = []
            if network.head:
                self.products.append(_Product(model, "conv_head", "act2", 1 / self.positions))
            if model.num_classes:
                self.products.append(_Product(model, "classifier", None, 1 if network.head else 1 / self.positions))

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes); features (N, features) without a classifier."""
        if x.shape[2:] != self.size:
            raise ValueError(f"deployed for {self.size[0]}x{self.size[1]} images, not {x.shape[2]}x{x.shape[3]}")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        self._tell("layer_1", x)
        for step in self.steps:
            x = step(x, self._tell)
        x = self.last(x)
        network = self.network
        self._tell(network.endpoint_after_blocks(0), x)
        x = _flat(x).sum(1)  # the division by the number of positions is in the next weights
        if self.receive:
            pooled = network.endpoint_after_blocks(1) if network.pools_in_layers else "global_pool"
            self._tell(pooled, x[:, :, None, None] / self.positions)
        if not self.products:
            return x / self.positions
        for product in self.products:
            x = product(x)
            if product.is_head:
                for name in (network.endpoint_after_blocks(2), "global_pool"):
                    self._tell(name, x[:, :, None, None])
            else:
                self._tell("Logits", x)
        return x

    def _tell(self, name: str, x: Tensor) -> None:
        if self.receive:
            self.receive(name, x)


class _Conv:
    """A convolution with its batch norm, padding and activation, on channels_last tensors."""

    def __init__(
        self, model: nn.Module, conv: str, norm: str, activation: str | None, size: Size, scale: float = 1.0
    ) -> None:
        layer: Any = model.get_submodule(conv)
        self.weight, self.bias = _folded(layer, model.get_submodule(norm), scale)
        self.attribute = _attribute(model, activation)
        self.stride, self.groups = list(layer.stride), layer.groups
        self.pointwise = self.weight.shape[2:] == (1, 1) and self.groups == 1 and self.stride == [1, 1]
        pads = [same_padding(side, k, s, 1) for side, k, s in zip(size, layer.kernel_size, self.stride, strict=True)]
        # oneDNN is asked for as much padding before as after. Where SAME wants one more after, zero weights in front
        # of the kernel bring both to the larger number, and cost less than a padded copy of the input.
        before = [after - first for first, after in pads]
        self.weight = F.pad(self.weight, (before[1], 0, before[0], 0))
        self.padding = [after for _, after in pads]
        self.size_after = -(-size[0] // self.stride[0]), -(-size[1] // self.stride[1])
        self.matrix = self.weight.flatten(1).contiguous()
        self.packed = _packed(self.weight, self.padding, self.stride, self.groups, size)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = x.shape[0] * x.shape[2] * x.shape[3]
        if self.pointwise and (rows <= FEW_POSITIONS or self.packed is None):
            flat = F.linear(x.permute(0, 2, 3, 1).reshape(rows, -1), self.matrix, self.bias)
            out = flat.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)
        elif self.packed is None:
            out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        else:
            layout = self.packed, self.bias, self.padding, self.stride, [1, 1], self.groups
            if residual is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *layout, self.attribute, [], None)
            return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *layout, "add", 1.0, None, [], None)
        _activate(out, self.attribute)
        return out if residual is None else out.add_(residual)


class _Product:
    """A matrix product with bias and activation, of (N, channels)."""

    def __init__(self, model: nn.Module, layer: str, activation: str | None, scale: float) -> None:
        found: Any = model.get_submodule(layer)
        self.weight = (found.weight.double().flatten(1) * scale).float().t().contiguous()
        self.bias = found.bias.detach().clone()
        self.attribute = _attribute(model, activation)
        self.is_head = layer == "conv_head"

    def __call__(self, x: Tensor) -> Tensor:
        return _activate(torch.addmm(self.bias, x, self.weight), self.attribute)


class _SqueezeExcite:
    """Scales the channels in place. The gate computes relu6(x + 3) / 6; ``scale`` is what its slope is times that."""

    def __init__(self, model: nn.Module, se: str, positions: int) -> None:
        gate = model.get_submodule(f"{se}.gate")
        assert isinstance(gate, Gate)
        self.scale = gate.slope * 6
        self.reduce = _Product(model, f"{se}.conv_reduce", f"{se}.act1", 1 / positions)
        self.expand = _Product(model, f"{se}.conv_expand", None, 1)

    def __call__(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.expand(self.reduce(_flat(x).sum(1))), inplace=True)
        return x.mul_(gate[:, :, None, None])


class _Block:
    """A block: expansion, depthwise, squeeze-excite, projection; those that it has."""

    def __init__(self, model: nn.Module, block: Block, size: Size) -> None:
        at, number = block.module, 0
        self.block = block
        self.convolutions: list[tuple[str, _Conv]] = []
        if block.expands:
            number += 1
            name = "conv_exp" if block.kind == "fused" else "conv_pw"
            conv = _Conv(model, f"{at}.{name}", f"{at}.bn{number}", f"{at}.act{number}", size)
            self.convolutions.append((f"{block.endpoint}/expansion_output", conv))
            size = conv.size_after
        if block.depthwise:
            number += 1
            conv = _Conv(model, f"{at}.conv_dw", f"{at}.bn{number}", f"{at}.act{number}", size)
            self.convolutions.append((f"{block.endpoint}/depthwise_output", conv))
            size = conv.size_after
        self.se = _SqueezeExcite(model, f"{at}.se", size[0] * size[1]) if block.squeezed else None
        scale = self.se.scale if self.se else 1.0
        self.project = _Conv(model, f"{at}.{block.project}", f"{at}.bn{number + 1}", None, size, scale)
        self.size_after = size

    def __call__(self, x: Tensor, tell: Receive) -> Tensor:
        out = x
        for name, conv in self.convolutions:
            out = conv(out)
            tell(name, out)
        if self.se:
            out = self.se(out)
        out = self.project(out, x if self.block.residual else None)
        tell(f"{self.block.endpoint}/output", out)
        tell(self.block.endpoint, out)
        return out


def _folded(conv: Any, norm: Any, scale: float) -> tuple[Tensor, Tensor]:
    """Weight (times ``scale``) and bias with the batch norm in them, worked out in float64."""
    weight = conv.weight.detach().double() * scale
    bias = torch.zeros(len(weight), dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = weight * factor[:, None, None, None]
        bias = norm.bias.double() + (bias - norm.running_mean.double()) * factor
    return weight.float(), bias.float().detach()


def _packed(weight: Tensor, padding: list[int], stride: list[int], groups: int, size: Size) -> Tensor | None:
    """The weight in the order that oneDNN's kernels like best; None where this torch has no oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    images = [1, weight.shape[1] * groups, *size]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, [1, 1], groups, images)


def _attribute(model: nn.Module, activation: str | None) -> Attribute:
    if activation is None:
        return "none"
    return "relu" if isinstance(model.get_submodule(activation), nn.ReLU) else "hardswish"


def _activate(x: Tensor, attribute: Attribute) -> Tensor:
    if attribute == "relu":
        return x.relu_()
    return F.hardswish(x, inplace=True) if attribute == "hardswish" else x


def _flat(x: Tensor) -> Tensor:
    """(N, C, H, W), channels_last -> (N, H x W, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
