"""The state-dict entries of the PyTorch network, in order, with their shapes: worked out without torch.

Names are timm's. tests/test_network.py holds this against the network itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from porter.mapping.network import Block, Network

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"  # PyTorch's batch norms count batches; TensorFlow has no such variable


def state_dict_shapes(network: Network, classes: int) -> dict[str, Shape]:
    """Entry -> shape (OIHW for convolutions) of the classifier with ``classes`` outputs."""
    kernel = network.stem_kernel
    entries: dict[str, Shape] = {"conv_stem.weight": (network.stem, network.channels, kernel, kernel)}
    entries |= _batch_norm("bn1", network.stem)
    for block in network.blocks:
        entries |= {f"{block.module}.{name}": shape for name, shape in _block(block)}
    last = network.last_module
    entries[f"{last}.conv.weight"] = (network.last, network.blocks[-1].out, 1, 1)
    entries |= _batch_norm(f"{last}.bn1", network.last)
    entries |= _biased("conv_head", (network.head, network.last, 1, 1))
    entries |= _biased("classifier", (classes, network.head))
    return entries


def _block(block: Block) -> Iterator[tuple[str, Shape]]:
    depthwise = (block.expanded, 1, block.kernel, block.kernel)
    project = (block.out, block.expanded, 1, 1)
    if block.separable:
        yield "conv_dw.weight", depthwise
        yield from _batch_norm("bn1", block.expanded).items()
        yield from _squeeze_excite(block)
        yield "conv_pw.weight", project
        yield from _batch_norm("bn2", block.out).items()
    else:
        yield "conv_pw.weight", (block.expanded, block.channels_in, 1, 1)
        yield from _batch_norm("bn1", block.expanded).items()
        yield "conv_dw.weight", depthwise
        yield from _batch_norm("bn2", block.expanded).items()
        yield from _squeeze_excite(block)
        yield "conv_pwl.weight", project
        yield from _batch_norm("bn3", block.out).items()


def _squeeze_excite(block: Block) -> Iterator[tuple[str, Shape]]:
    if block.squeezed:
        yield from _biased("se.conv_reduce", (block.squeezed, block.expanded, 1, 1)).items()
        yield from _biased("se.conv_expand", (block.expanded, block.squeezed, 1, 1)).items()


def _batch_norm(module: str, channels: int) -> dict[str, Shape]:
    vectors = {f"{module}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{module}.{COUNTER}": ()}


def _biased(module: str, shape: Shape) -> dict[str, Shape]:
    return {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
