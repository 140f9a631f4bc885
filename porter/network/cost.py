"""What the network costs to run, worked out from its layers."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from porter.network.layers import Layer, layers
from porter.network.network import Network


def multiply_accumulates(network: Network, size: int, classes: int) -> int:
    """Multiply-accumulates of convolutions and classifier for one ``size`` x ``size`` image; nothing else counted."""
    return sum(pixels * prod(layer.shape) for layer, pixels in _positions(network, size, classes))


def activations(network: Network, size: int, classes: int) -> int:
    """Values that convolutions and classifier put out for one ``size`` x ``size`` image, as timm's cards count them."""
    return sum(pixels * layer.shape[0] for layer, pixels in _positions(network, size, classes))


def _positions(network: Network, size: int, classes: int) -> Iterator[tuple[Layer, int]]:
    """Every layer, and the positions of its output."""
    side = size
    for layer in layers(network, classes):
        side = -(-side // layer.stride)
        yield layer, 1 if layer.pooled else side**2
