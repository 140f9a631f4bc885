"""SSDLite on MobileNetV3 (arXiv 1905.02244, section 6.3; object_detection's ssd_mobilenet_v3_feature_extractor.py).

Entries of the backbone have LR-ASPP's names. Those of the head are this project's: torchvision's SSDLite is another
network, and none of its weights fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from porter.models.mobilenet_v3 import Backbone, SameConv2d, activation, batch_norm, pointwise, state_gate
from porter.network.detection import Detection
from porter.network.network import Network
from porter.network.nodes import inner_map


class SSDLite(nn.Module):
    """(N, channels, H, W) float, RGB in [-1, 1] -> encodings (N, boxes, 4) and logits (N, boxes, num_classes).

    Class 0 is the background. ``porter.network.nodes.anchors`` has the boxes' anchors, and
    ``porter.network.detection.decoded`` what encodings mean.
    """

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        head = network.head
        assert isinstance(head, Detection)
        self.network, self.num_classes = network, num_classes
        self.pretrained_cfg: dict[str, Any] = {}
        state_gate(self, network)
        self.backbone = Backbone(network)
        channels = [inner_map(network).channels, network.map_channels]
        extras = []
        for depth in head.extra:
            half = depth // 2
            narrow = _unit(pointwise(channels[-1], half, network), network)
            halved = _unit(SameConv2d(half, half, 3, 2, groups=half, bias=network.bn_folded), network)
            wide = _unit(pointwise(half, depth, network), network)
            extras.append(nn.Sequential(narrow, halved, wide))
            channels.append(depth)
        self.extras = nn.ModuleList(extras)
        levels = list(zip(head.anchors_per_position, channels, strict=True))
        self.boxes = nn.ModuleList(_predictor(inputs, count * 4, network) for count, inputs in levels)
        self.classes = nn.ModuleList(_predictor(inputs, count * num_classes, network) for count, inputs in levels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> encodings (N, boxes, 4) and logits (N, boxes, num_classes)."""
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


def _unit(convolution: nn.Conv2d, network: Network) -> nn.Sequential:
    """A convolution, its batch norm and relu6."""
    return nn.Sequential(convolution, batch_norm(convolution.out_channels, network), activation("relu6"))


def _predictor(channels: int, out: int, network: Network) -> nn.Sequential:
    depthwise = _unit(SameConv2d(channels, channels, 3, groups=channels, bias=network.bn_folded), network)
    return nn.Sequential(depthwise, nn.Conv2d(channels, out, 1))
