"""DeepLab's LR-ASPP on MobileNetV3 (arXiv 1905.02244, section 6.4; research/deeplab/model.py).

State dicts have the names of torchvision's ``lraspp_mobilenet_v3_large``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from porter.models.mobilenet_v3 import Backbone, Gate, activation, batch_norm, pointwise, state_gate
from porter.network.network import Network
from porter.network.nodes import inner_map
from porter.network.segmentation import Segmentation


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


class Head(nn.Module):
    """(last map, inner map) -> (N, classes, h, w) at the size of the inner map."""

    def __init__(self, network: Network, head: Segmentation, classes: int) -> None:
        super().__init__()
        last, filters = network.map_channels, head.filters
        norm = batch_norm(filters, network, head.epsilon)
        self.cbr = nn.Sequential(pointwise(last, filters, network), norm, activation("relu"))
        self.scale = nn.Sequential(Pool(head.window, head.stride), nn.Conv2d(last, filters, 1), Gate(network.gate))
        self.low_classifier = nn.Conv2d(inner_map(network).channels, classes, 1)
        self.high_classifier = nn.Conv2d(filters, classes, 1)

    def forward(self, last: Tensor, low: Tensor) -> Tensor:
        gate = resized(self.scale(last), last)
        high = self.high_classifier(resized(self.cbr(last) * gate, low))
        return high + self.low_classifier(low)


class LRASPP(nn.Module):
    """(N, channels, H, W) float, RGB in [-1, 1] -> (N, num_classes, H, W) logits of every pixel."""

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        assert isinstance(network.head, Segmentation)
        self.network, self.num_classes = network, num_classes
        self.pretrained_cfg: dict[str, Any] = {}
        state_gate(self, network)
        self.backbone = Backbone(network)
        self.classifier = Head(network, network.head, num_classes)

    def semantic(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes, H / 8, W / 8), sizes rounded up; what the head gives."""
        return self.classifier(*self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes, H, W)."""
        return resized(self.semantic(x), x)
