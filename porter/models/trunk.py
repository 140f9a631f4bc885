"""MobileNetV3's trunk under torchvision's names, for the heads that take two of its maps."""

from __future__ import annotations

from torch import Tensor, nn

from porter.models.blocks import Gate, VectorConv2d, activation, batch_norm
from porter.models.mobilenet_v3 import made_ready
from porter.models.same_padding import SameConv2d
from porter.network.network import Block as BlockTable
from porter.network.network import Network
from porter.network.spec import Activation


class ConvNormAct(nn.Sequential):
    """Convolution with SAME padding, batch norm, and the activation if there is one."""

    def __init__(self, convolution: nn.Module, channels: int, act: Activation | None, network: Network) -> None:
        super().__init__(convolution, batch_norm(channels, network), *([activation(act)] if act else []))


class SqueezeExcite(nn.Module):
    """Scales the channels of (N, C, H, W) by a gate computed from their means."""

    def __init__(self, channels: int, squeezed: int, gate: float) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = VectorConv2d(channels, squeezed)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = VectorConv2d(squeezed, channels)
        self.scale_activation = Gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class Block(nn.Module):
    """The members of a block, numbered in ``block``."""

    def __init__(self, block: BlockTable, network: Network) -> None:
        super().__init__()
        bias, inner, act = network.bn_folded, block.expanded, block.activation
        shape = block.kernel, block.stride, block.dilation
        members: list[nn.Module] = []
        if block.expands:
            expand: nn.Module = nn.Conv2d(block.channels_in, inner, 1, bias=bias)
            if block.kind == "fused":
                expand = SameConv2d(block.channels_in, inner, *shape, bias=bias)
            members.append(ConvNormAct(expand, inner, act, network))
        if block.depthwise:
            depthwise = SameConv2d(inner, inner, *shape, groups=inner, bias=bias)
            members.append(ConvNormAct(depthwise, inner, act, network))
        if block.squeezed:
            members.append(SqueezeExcite(inner, block.squeezed, network.gate))
        members.append(ConvNormAct(nn.Conv2d(inner, block.out, 1, bias=bias), block.out, None, network))
        self.block = nn.Sequential(*members)
        self.residual = block.residual


class InvertedResidual(Block):
    """A block."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> what the block gives."""
        return self.block(x) + x if self.residual else self.block(x)


class TappedResidual(Block):
    """A block that gives the map behind the member number ``tap`` as well."""

    def __init__(self, block: BlockTable, network: Network, tap: int) -> None:
        super().__init__(block, network)
        self.tap = tap

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> what the block gives, and the inner map."""
        inner, out = x, x
        for number, member in enumerate(self.block):
            out = member(out)
            if number == self.tap:
                inner = out
        return (out + x if self.residual else out), inner


class Trunk(nn.Sequential):
    """(N, channels, H, W) -> the last map, and that of the endpoint ``tapped`` (``layer_7/depthwise_output``)."""

    def __init__(self, network: Network, tapped: str) -> None:
        bias = network.bn_folded
        stem = SameConv2d(network.channels, network.stem, network.stem_kernel, network.stem_stride, bias=bias)
        endpoint, _, inside = tapped.partition("/")
        blocks: list[nn.Module] = []
        for block in network.blocks:
            taps = {"expansion_output": 0, "depthwise_output": int(block.expands)}
            if block.endpoint == endpoint:
                blocks.append(TappedResidual(block, network, taps[inside]))
            else:
                blocks.append(InvertedResidual(block, network))
        super().__init__(ConvNormAct(stem, network.stem, network.stem_activation, network), *blocks)
        if network.last:
            last = nn.Conv2d(network.blocks[-1].out, network.last, 1, bias=bias)
            self.append(ConvNormAct(last, network.last, network.last_activation, network))
        self.channels = network.channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As above."""
        x = inner = made_ready(x, self.channels)
        for member in self:
            if isinstance(member, TappedResidual):
                x, inner = member(x)
            else:
                x = member(x)
        return x, inner
