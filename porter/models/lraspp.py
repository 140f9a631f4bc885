"""DeepLab's LR-ASPP on MobileNetV3 (arXiv 1905.02244, section 6.4; research/deeplab/model.py).

Modules are named as in torchvision's ``lraspp_mobilenet_v3_large``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from porter.architecture.network import Block as BlockTable
from porter.architecture.network import Network
from porter.architecture.table import Activation, Segmentation
from porter.models.blocks import Gate, VectorConv2d, activation, batch_norm
from porter.models.mobilenet_v3 import made_ready
from porter.models.same_padding import SameConv2d


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
        members: list[nn.Module] = []
        if block.expands:
            pointwise = nn.Conv2d(block.channels_in, inner, 1, bias=bias)
            members.append(ConvNormAct(pointwise, inner, act, network))
        depthwise = SameConv2d(inner, inner, block.kernel, block.stride, block.dilation, groups=inner, bias=bias)
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
    """A block that gives its inner map, behind the depthwise convolution, as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> what the block gives, and the inner map."""
        inner, out = x, x
        for member in self.block:
            out = member(out)
            if isinstance(member, ConvNormAct) and member is not self.block[-1]:
                inner = out
        return (out + x if self.residual else out), inner


class Head(nn.Module):
    """(last map, inner map) -> (N, classes, h, w) at the size of the inner map."""

    def __init__(self, network: Network, head: Segmentation, classes: int) -> None:
        super().__init__()
        last, filters = network.map_channels, head.filters
        self.cbr = nn.Sequential(
            nn.Conv2d(last, filters, 1, bias=False),
            nn.BatchNorm2d(filters, eps=head.epsilon, momentum=1 - network.decay),
            nn.ReLU(inplace=True),
        )
        self.scale = nn.Sequential(Pool(head.window, head.stride), nn.Conv2d(last, filters, 1), Gate(network.gate))
        self.low_classifier = nn.Conv2d(network.low_channels, classes, 1)
        self.high_classifier = nn.Conv2d(filters, classes, 1)

    def forward(self, last: Tensor, low: Tensor) -> Tensor:
        gate = resized(self.scale(last), last)
        high = self.high_classifier(resized(self.cbr(last) * gate, low))
        return high + self.low_classifier(low)


class Pool(nn.Module):
    """Average pooling with VALID padding; a map smaller than the window is pooled whole."""

    def __init__(self, window: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.window, self.stride = tuple(window), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        window = tuple(min(side, most) for side, most in zip(x.shape[2:], self.window, strict=True))
        return F.avg_pool2d(x, window, self.stride)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the size of ``like``: bilinear, corner pixels on corner pixels (``align_corners``)."""
    return F.interpolate(x, tuple(like.shape[2:]), mode="bilinear", align_corners=True)


class LRASPP(nn.Module):
    """(N, channels, H, W) float, RGB in [-1, 1] -> (N, num_classes, H, W) logits of every pixel."""

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        assert network.segmentation is not None
        self.network, self.num_classes = network, num_classes
        self.pretrained_cfg: dict[str, Any] = {}
        stem = SameConv2d(network.channels, network.stem, network.stem_kernel, network.stem_stride)
        last = nn.Conv2d(network.blocks[-1].out, network.last, 1, bias=False)
        members: list[nn.Module] = [ConvNormAct(stem, network.stem, network.stem_activation, network)]
        low, _, inside = network.segmentation.low.partition("/")
        for block in network.blocks:
            tapped = block.endpoint == low and inside == "depthwise_output"
            members.append(TappedResidual(block, network) if tapped else InvertedResidual(block, network))
        members.append(ConvNormAct(last, network.last, network.last_activation, network))
        self.backbone = nn.Sequential(*members)
        self.classifier = Head(network, network.segmentation, num_classes)
        self.low_index = int(low.removeprefix("layer_")) - 1  # layer_1 is the stem

    def semantic(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes, H / 8, W / 8), sizes rounded up; what the head gives."""
        x = made_ready(x, self.network.channels)
        low = x
        for number, member in enumerate(self.backbone):
            if isinstance(member, TappedResidual):
                x, low = member(x)
                continue
            x = member(x)
            if number == self.low_index:
                low = x
        return self.classifier(x, low)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes, H, W)."""
        return resized(self.semantic(x), x)
