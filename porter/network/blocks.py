"""The building blocks of MobileNetV3. Attribute names are timm's, so that state dicts are interchangeable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from porter.mapping.network import Block, Network
from porter.mapping.schema import Activation
from porter.network.same_padding import SameConv2d


def activation(name: Activation) -> nn.Module:
    """``relu``, or ``hard_swish``: x * relu6(x + 3) / 6 (slim's h-swish does use 1/6, unlike its gate)."""
    return nn.ReLU() if name == "relu" else nn.Hardswish()


def batch_norm(channels: int, network: Network) -> nn.BatchNorm2d:
    """Batch norm with slim's constants; PyTorch's momentum is what TensorFlow calls 1 - decay."""
    return nn.BatchNorm2d(channels, eps=network.epsilon, momentum=1 - network.decay)


class Gate(nn.Module):
    """Squeeze-excite gate ``relu6(x + 3) * slope``; slim's slope is 0.16667, not 1/6."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0) * self.slope

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class SqueezeExcite(nn.Module):
    """Scales the channels of (N, C, H, W) by a gate computed from their means."""

    def __init__(self, channels: int, squeezed: int, gate: float) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = Gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(F.relu(self.conv_reduce(mean))))


def _squeeze_excite(block: Block, network: Network) -> nn.Module:
    return SqueezeExcite(block.expanded, block.squeezed, network.gate) if block.squeezed else nn.Identity()


def _depthwise(block: Block) -> SameConv2d:
    return SameConv2d(block.expanded, block.expanded, block.kernel, block.stride, groups=block.expanded)


class DepthwiseSeparable(nn.Module):
    """A block with expansion 1: depthwise, squeeze-excite, 1x1 projection."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv_dw = _depthwise(block)
        self.bn1 = batch_norm(block.expanded, network)
        self.act1 = activation(block.activation)
        self.se = _squeeze_excite(block, network)
        self.conv_pw = nn.Conv2d(block.expanded, block.out, 1, bias=False)
        self.bn2 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(self.act1(self.bn1(self.conv_dw(x))))
        out = self.bn2(self.conv_pw(out))
        return out + x if self.residual else out


class InvertedResidual(nn.Module):
    """A block with expansion: 1x1 expansion, depthwise, squeeze-excite, 1x1 projection."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv_pw = nn.Conv2d(block.channels_in, block.expanded, 1, bias=False)
        self.bn1 = batch_norm(block.expanded, network)
        self.act1 = activation(block.activation)
        self.conv_dw = _depthwise(block)
        self.bn2 = batch_norm(block.expanded, network)
        self.act2 = activation(block.activation)
        self.se = _squeeze_excite(block, network)
        self.conv_pwl = nn.Conv2d(block.expanded, block.out, 1, bias=False)
        self.bn3 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv_pw(x)))
        out = self.se(self.act2(self.bn2(self.conv_dw(out))))
        out = self.bn3(self.conv_pwl(out))
        return out + x if self.residual else out


class ConvNormAct(nn.Module):
    """1x1 convolution, batch norm, activation."""

    def __init__(self, channels_in: int, out: int, act: Activation, network: Network) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, out, 1, bias=False)
        self.bn1 = batch_norm(out, network)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))
