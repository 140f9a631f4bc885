"""SSDLite on MobileNetV3 (arXiv 1905.02244, section 6.3; object_detection's ssd_mobilenet_v3_feature_extractor.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from porter.models.blocks import state_gate
from porter.models.same_padding import SameConv2d
from porter.models.trunk import ConvNormAct, Trunk
from porter.network.network import Network


class SSDLite(nn.Module):
    """(N, channels, H, W) float, RGB in [-1, 1] -> encodings (N, boxes, 4) and logits (N, boxes, num_classes).

    Class 0 is the background. ``porter.network.anchors`` has the boxes' anchors and what encodings mean.
    """

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        head = network.detection
        assert head is not None
        self.network, self.num_classes = network, num_classes
        self.pretrained_cfg: dict[str, Any] = {}
        state_gate(self, network)
        self.backbone = Trunk(network, head.first)
        channels = [network.inner_channels, network.map_channels]
        extras = []
        for depth in head.extra:
            half = depth // 2
            narrow = ConvNormAct(nn.Conv2d(channels[-1], half, 1, bias=False), half, "relu6", network)
            halved = ConvNormAct(SameConv2d(half, half, 3, 2, groups=half), half, "relu6", network)
            wide = ConvNormAct(nn.Conv2d(half, depth, 1, bias=False), depth, "relu6", network)
            extras.append(nn.Sequential(narrow, halved, wide))
            channels.append(depth)
        self.extras = nn.ModuleList(extras)
        levels = list(zip(network.boxes, channels, strict=True))
        self.boxes = nn.ModuleList(_predictor(inputs, count * 4, network) for count, inputs in levels)
        self.classes = nn.ModuleList(_predictor(inputs, count * num_classes, network) for count, inputs in levels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As above."""
        last, first = self.backbone(x)
        maps = [first, last]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        encodings, logits = [], []
        for level, map_ in enumerate(maps):
            encodings.append(_by_box(self.boxes[level](map_), 4))
            logits.append(_by_box(self.classes[level](map_), self.num_classes))
        return torch.cat(encodings, 1), torch.cat(logits, 1)


def _by_box(x: Tensor, values: int) -> Tensor:
    """(N, boxes * values, h, w) -> (N, h * w * boxes, values)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def _predictor(channels: int, out: int, network: Network) -> nn.Sequential:
    depthwise = ConvNormAct(SameConv2d(channels, channels, 3, groups=channels), channels, "relu6", network)
    return nn.Sequential(depthwise, nn.Conv2d(channels, out, 1))
