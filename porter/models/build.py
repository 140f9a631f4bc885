"""The module that a network table makes."""

from __future__ import annotations

from porter.architecture.network import Network
from porter.models.lraspp import LRASPP
from porter.models.mobilenet_v3 import MobileNetV3

Whole = MobileNetV3 | LRASPP  # a network with its head, unlike a feature pyramid


def build_model(network: Network, num_classes: int, dropout: float | None = None) -> Whole:
    """A classifier, or where the table has a segmentation head, a segmenter; untrained."""
    if network.segmentation is not None:
        return LRASPP(network, num_classes)
    return MobileNetV3(network, num_classes, dropout)
