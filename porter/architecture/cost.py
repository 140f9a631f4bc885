"""What the network costs to run, worked out from its table."""

from __future__ import annotations

from math import prod

from porter.architecture.layers import layers
from porter.architecture.network import Network


def multiply_accumulates(network: Network, size: int, classes: int) -> int:
    """Multiply-accumulates of convolutions and classifier for one ``size`` x ``size`` image; nothing else counted."""
    pixels = _pixels(network, size)
    return sum(pixels.get(layer.module, 1) * prod(layer.shape) for layer in layers(network, classes))


def activations(network: Network, size: int, classes: int) -> int:
    """Values that convolutions and classifier put out for one ``size`` x ``size`` image, as timm's cards count them."""
    pixels = _pixels(network, size)
    return sum(pixels.get(layer.module, 1) * layer.shape[0] for layer in layers(network, classes))


def _pixels(network: Network, size: int) -> dict[str, int]:
    """Positions of each layer's output; what is not among them comes after a pooling, at one."""
    pixels = {"conv_stem": _strided(size, network.stem_stride) ** 2}
    side = _strided(size, network.stem_stride)
    for block in network.blocks:
        after = _strided(side, block.stride)
        # The first convolution of a block with two or more runs before the stride, unless it is the one that strides
        pixels |= {f"{block.module}.conv_pw": (side if block.expands else after) ** 2}
        pixels |= {f"{block.module}.{name}": after**2 for name in ("conv_dw", "conv_exp", "conv_pwl", "conv")}
        side = after
    pixels[network.last_conv] = side**2
    return pixels


def _strided(side: int, stride: int) -> int:
    return -(-side // stride)
