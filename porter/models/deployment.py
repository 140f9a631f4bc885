"""The form for inference on CPU: batch norms folded, activations fused, SAME padding fixed for one image size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.architecture.network import Block
from porter.models.blocks import Gate
from porter.models.mobilenet_v3 import MobileNetV3
from porter.models.same_padding import same_padding

Attribute = Literal["none", "relu", "hardswish"]  # oneDNN's names of what may follow a convolution
Receive = Callable[[str, Tensor], None]
Kernel = Callable[[Tensor, Tensor | None], Tensor]  # images and what to add to the result
Size = tuple[int, int]  # height, width in pixels

# Up to so many results (2 MiB: they stay in the cache), a matrix product with bias and activation in place is faster
# than oneDNN's fused 1x1 convolution, each call of which costs as much as a small layer
FEW_RESULTS = 1 << 19

# Larger batches run in parts of so many pixels: what one layer writes is still in the cache when the next reads it
PART_PIXELS = 8 * 224 * 224

FEW_CHANNELS = 4  # up to so many, a compiler's own loop is faster than a call of oneDNN: the stem's

FUSED = torch.ops.mkldnn._convolution_pointwise.default
FUSED_ADD = torch.ops.mkldnn._convolution_pointwise.binary


def deploy(model: MobileNetV3, size: Size | int = 224) -> Deployed:
    """``model`` for inference on CPU, at one image size and any batch size: exact up to float32 rounding.

    The weights are copied; ``model`` stays as it is. Raises ValueError on a model that is not float32.
    """
    return Deployed(model, (size, size) if isinstance(size, int) else size)


class Deployed(nn.Module):
    """What ``deploy`` makes: (N, channels, H, W) float32 -> (N, num_classes), without gradients.

    Batches of more than ``part`` images run in parts. ``receive``, where set, is handed every endpoint as it is
    computed, under TensorFlow's name, of the whole batch and without a compiler. There is no state
    dict: weights are packed for this machine, so save ``model`` and deploy it anew.
    """

    def __init__(self, model: MobileNetV3, size: Size) -> None:
        super().__init__()
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
            raise ValueError("deploy takes a float32 model on the CPU")
        network = model.network
        self.network, self.num_classes, self.size = network, model.num_classes, size
        self.receive: Receive | None = None
        self.part = max(1, PART_PIXELS // (size[0] * size[1]))
        self.run_part = self._run
        with torch.no_grad():
            self.stem = _Conv(model, "conv_stem", "bn1", "act1", size, padded=True)
            self.steps: list[_Block] = []
            size = self.stem.size_after
            for block in network.blocks:
                step = _Block(model, block, size)
                self.steps.append(step)
                size = step.size_after
            self.last = _Conv(model, network.last_conv, network.last_norm, network.last_act, size)
            self.positions = size[0] * size[1]
            self.products: list[_Dense] = []
            if network.head:
                self.products.append(_Dense(model, "conv_head", "act2", 1 / self.positions))
            if model.num_classes:
                self.products.append(_Dense(model, "classifier", None, 1 if network.head else 1 / self.positions))
            self.layers = nn.ModuleList([self.stem, *self.steps, self.last, *self.products])

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes); features (N, features) without a classifier."""
        if x.shape[2:] != self.size:
            raise ValueError(f"deployed for {self.size[0]}x{self.size[1]} images, not {x.shape[2]}x{x.shape[3]}")
        if torch.compiler.is_compiling():
            return self._run(x)
        with torch.inference_mode():
            if self.receive:
                return self._run(x)
            if len(x) <= self.part:
                return self.run_part(x)
            starts = range(0, len(x), self.part)
            return torch.cat([self.run_part(x[start : start + self.part]) for start in starts])

    def compile(self, *args: Any, **options: Any) -> None:
        """As ``nn.Module.compile``; what is compiled is the run of a part of a batch."""
        self.run_part = torch.compile(self._run, *args, **options)

    def _run(self, x: Tensor) -> Tensor:
        x = self.stem.run(x if torch.compiler.is_compiling() else _padded(x, *self.stem.pads))
        self._tell("layer_1", x)
        for step in self.steps:
            x = step.run(x, self._tell)
        x = self.last.run(x)
        network = self.network
        self._tell(network.endpoint_after_blocks(0), x)
        x = x.sum((2, 3))  # the division by the number of positions is in the next weights
        if self.receive:
            pooled = network.endpoint_after_blocks(1) if network.pools_in_layers else "global_pool"
            self._tell(pooled, x[:, :, None, None] / self.positions)
        if not self.products:
            return x / self.positions
        for product in self.products:
            x = product.run(x)
            if product.is_head:
                for name in (network.endpoint_after_blocks(2), "global_pool"):
                    self._tell(name, x[:, :, None, None])
            else:
                self._tell("Logits", x)
        return x

    def _tell(self, name: str, x: Tensor) -> None:
        if self.receive:
            self.receive(name, x.clone())  # what comes next may work in place


class _Conv(nn.Module):
    """A convolution with its batch norm, padding and activation, on channels_last tensors.

    ``eager`` runs it by PyTorch's kernels, given ``padded`` images or not; ``fusible`` is the same in the operations
    that a compiler makes the best of.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        model: nn.Module,
        conv: str,
        norm: str,
        activation: str | None,
        size: Size,
        scale: float = 1.0,
        padded: bool = False,
    ) -> None:
        super().__init__()
        layer: Any = model.get_submodule(conv)
        weight, bias = _folded(layer, model.get_submodule(norm), scale)
        self.attribute = _attribute(model, activation)
        self.stride, self.groups = list(layer.stride), layer.groups
        self.pointwise = weight.shape[2:] == (1, 1) and self.groups == 1 and self.stride == [1, 1]
        self.by_taps = self.groups == len(weight) or weight.shape[1] <= FEW_CHANNELS
        axes = zip(size, weight.shape[2:], self.stride, strict=True)
        self.pads = [same_padding(side, kernel, stride, 1) for side, kernel, stride in axes]
        self.size_after = -(-size[0] // self.stride[0]), -(-size[1] // self.stride[1])
        self.eager = _eager(
            weight,
            bias,
            [(0, 0)] * 2 if padded else self.pads,
            self.stride,
            self.groups,
            size,
            self.attribute,
            self.pointwise,
        )
        if self.pointwise:
            weight = weight.flatten(1).t().contiguous()  # channels in, out
        elif self.by_taps:
            weight = weight.permute(1, 2, 3, 0).contiguous()  # channels in (1 if depthwise), height, width, out
        (self.top, self.bottom), (self.left, self.right) = self.pads
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def run(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'), plus ``residual``."""
        return self.fusible(x, residual) if torch.compiler.is_compiling() else self.eager(x, residual)

    def fusible(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """As ``run``."""
        if self.pointwise:
            rows = torch.mm(x.permute(0, 2, 3, 1).flatten(0, 2), self.weight)
            # Added behind the view, or a compiler makes addmm of it, which copies the bias to every row first
            out = (rows.view(x.shape[0], *x.shape[2:], -1) + self.bias).permute(0, 3, 1, 2)
        else:
            x = F.pad(x, (self.left, self.right, self.top, self.bottom))
            out = self._taps(x) if self.by_taps else F.conv2d(x, self.weight, self.bias, self.stride)
        out = _activate(out, self.attribute)
        return out if residual is None else out + residual

    def _taps(self, x: Tensor) -> Tensor:
        """The convolution of padded images as a sum of shifted products: one loop for a compiler.

        Strided views make it keep the padded images in memory; through slices, it would compute what comes before
        once for each tap.
        """
        x = x.contiguous(memory_format=torch.channels_last if self.groups > 1 else torch.contiguous_format)
        down, across = self.stride
        channels_in, kernel_height, kernel_width, _ = self.weight.shape
        shape = x.shape[0], *self.size_after, x.shape[1] if self.groups > 1 else 1
        strides = x.stride(0), down * x.stride(2), across * x.stride(3), x.stride(1) if self.groups > 1 else 0
        out = self.bias
        for c, i, j in itertools.product(range(channels_in), range(kernel_height), range(kernel_width)):
            at = x.as_strided(shape, strides, c * x.stride(1) + i * x.stride(2) + j * x.stride(3))
            out = out + at * self.weight[c, i, j]
        return out.permute(0, 3, 1, 2)


def _eager(
    weight: Tensor,
    bias: Tensor,
    pads: Sequence[tuple[int, int]],
    stride: list[int],
    groups: int,
    size: Size,
    attribute: Attribute,
    pointwise: bool,
) -> Kernel:
    """A convolution (weight OIHW) by whichever of PyTorch's kernels is fastest; what does not change is worked out."""
    # oneDNN is asked for as much padding before as after. Where SAME wants one more after, zero weights in front
    # of the kernel bring both to the larger number, and cost less than a padded copy of the input.
    (top, bottom), (left, right) = pads
    weight, padding = F.pad(weight, (right - left, 0, bottom - top, 0)), [bottom, right]
    packed = _packed(weight, padding, stride, groups, size)
    layout = bias, padding, stride, [1, 1], groups

    def convolution(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if packed is None:
            out = _activate(F.conv2d(x, weight, bias, stride, padding, 1, groups), attribute)
            return out if residual is None else out.add_(residual)
        if residual is None:
            return FUSED(x, packed, *layout, attribute, [], None)
        return FUSED_ADD(x, residual, packed, *layout, "add", 1.0, None, [], None)

    if not pointwise:
        return convolution
    product = _product(weight, bias, size, attribute)
    few = FEW_RESULTS // (len(weight) * size[0] * size[1])  # images

    def few_or_many(x: Tensor, residual: Tensor | None = None) -> Tensor:
        return product(x, residual) if len(x) <= few else convolution(x, residual)

    return few_or_many


def _product(weight: Tensor, bias: Tensor, size: Size, attribute: Attribute) -> Kernel:
    """A 1x1 convolution of dense channels_last images as the matrix product that it is, views spared."""
    (out, channels), (height, width) = weight.shape[:2], size
    matrix, positions = weight.flatten(1).t().contiguous(), height * width

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        images = len(x)
        # Not addmm: it copies the bias to every row first
        rows = torch.mm(x.as_strided((images * positions, channels), (channels, 1)), matrix).add_(bias)
        _activate(rows, attribute)
        if residual is not None:
            rows.add_(residual.as_strided(rows.shape, (out, 1)))
        return rows.as_strided((images, out, height, width), (positions * out, 1, width * out, out))

    return run


class _Dense(nn.Module):
    """A matrix product with bias and activation, of (N, channels)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, layer: str, activation: str | None, scale: float) -> None:
        super().__init__()
        found: Any = model.get_submodule(layer)
        weight = (found.weight.double().flatten(1) * scale).float().t().contiguous()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", found.bias.detach().clone(), persistent=False)
        self.attribute = _attribute(model, activation)
        self.is_head = layer == "conv_head"

    def run(self, x: Tensor) -> Tensor:
        return _activate(torch.addmm(self.bias, x, self.weight), self.attribute)


class _SqueezeExcite(nn.Module):
    """Scales the channels in place. The gate computes relu6(x + 3) / 6; ``scale`` is what its slope is times that."""

    def __init__(self, model: nn.Module, se: str, positions: int) -> None:
        super().__init__()
        gate = model.get_submodule(f"{se}.gate")
        assert isinstance(gate, Gate)
        self.scale = gate.slope * 6
        self.reduce = _Dense(model, f"{se}.conv_reduce", f"{se}.act1", 1 / positions)
        self.expand = _Dense(model, f"{se}.conv_expand", None, 1)

    def run(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.expand.run(self.reduce.run(x.sum((2, 3)))), inplace=True)
        return x.mul_(gate.unsqueeze(2).unsqueeze(3))


class _Block(nn.Module):
    """A block: expansion, depthwise, squeeze-excite, projection; those that it has."""

    def __init__(self, model: nn.Module, block: Block, size: Size) -> None:
        super().__init__()
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
        self.layers = nn.ModuleList([*(conv for _, conv in self.convolutions), *([self.se] if self.se else [])])

    def run(self, x: Tensor, tell: Receive) -> Tensor:
        out = x
        for name, conv in self.convolutions:
            out = conv.run(out)
            tell(name, out)
        if self.se:
            out = self.se.run(out)
        out = self.project.run(out, x if self.block.residual else None)
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


def _padded(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """(N, C, H, W) with zeros around, in channels_last: the layout changes with the copy that padding makes anyway."""
    batch, channels, height, width = x.shape
    out = x.new_zeros(batch, height + sum(rows), width + sum(columns), channels).permute(0, 3, 1, 2)
    out[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width] = x
    return out
