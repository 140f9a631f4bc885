"""The state-dict entries of the PyTorch network, in order, with their shapes: worked out without torch.

Names are timm's. tests/test_network.py holds this against the network itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from porter.architecture.network import Block, Network

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"  # PyTorch's batch norms count batches; TensorFlow has no such variable


class Layer(NamedTuple):
    """A convolution or linear layer: its module, the shape of its weight (OIHW, OI), the batch norm behind it."""

    module: str
    shape: Shape
    norm: str | None


def state_dict_shapes(network: Network, classes: int) -> dict[str, Shape]:
    """Entry -> shape (OIHW for convolutions) of the classifier with ``classes`` outputs."""
    entries: dict[str, Shape] = {}
    for module, shape, norm in layers(network, classes):
        entries[f"{module}.weight"] = shape
        if norm is None or network.bn_folded:
            entries[f"{module}.bias"] = shape[:1]
        else:
            entries |= {f"{norm}.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")}
            entries[f"{norm}.{COUNTER}"] = ()
    return entries


def layers(network: Network, classes: int) -> Iterator[Layer]:
    """Every layer with weights, in the order of computation. 0 ``classes``: no classifier."""
    kernel = network.stem_kernel
    yield Layer("conv_stem", (network.stem, network.channels, kernel, kernel), "bn1")
    for block in network.blocks:
        for name, shape, norm in _block(block):
            yield Layer(f"{block.module}.{name}", shape, norm and f"{block.module}.{norm}")
    yield Layer(network.last_conv, (network.last, network.blocks[-1].out, 1, 1), network.last_norm)
    if network.head:
        yield Layer("conv_head", (network.head, network.last, 1, 1), None)
    if classes:
        yield Layer("classifier", (classes, network.features), None)


def _block(block: Block) -> Iterator[Layer]:
    norms = iter(("bn1", "bn2", "bn3"))
    if block.kind == "fused":
        yield Layer("conv_exp", (block.expanded, block.channels_in, block.kernel, block.kernel), next(norms))
    elif block.expands:
        yield Layer("conv_pw", (block.expanded, block.channels_in, 1, 1), next(norms))
    if block.depthwise:
        yield Layer("conv_dw", (block.expanded, 1, block.kernel, block.kernel), next(norms))
    if block.squeezed:
        yield Layer("se.conv_reduce", (block.squeezed, block.expanded, 1, 1), None)
        yield Layer("se.conv_expand", (block.expanded, block.squeezed, 1, 1), None)
    yield Layer(block.project, (block.out, block.expanded, 1, 1), next(norms))
