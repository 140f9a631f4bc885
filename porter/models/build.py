"""The module that a network table makes."""

from __future__ import annotations

from porter.models.lraspp import LRASPP
from porter.models.mobilenet_v3 import MobileNetV3
from porter.models.ssdlite import SSDLite
from porter.network.network import Network

Whole = MobileNetV3 | LRASPP | SSDLite  # a network with its head, unlike a feature pyramid


def build_model(network: Network, num_classes: int, dropout: float | None = None) -> Whole:
    """A classifier, or where the table has another head, a segmenter or a detector; untrained."""
    if network.segmentation is not None:
        return LRASPP(network, num_classes)
    if network.detection is not None:
        return SSDLite(network, num_classes)
    return MobileNetV3(network, num_classes, dropout)
