"""The nodes of a network: its one description, from which all follows but the PyTorch modules and the tf.nn reference.

tests/test_network.py holds it against the PyTorch network itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from porter.network.detection import Detection, anchors_on
from porter.network.network import GATE_ENTRY, Block, Network
from porter.network.node import IMAGE, Group, Map, Node, Shape, map_sizes, same_padding
from porter.network.spec import Input

if TYPE_CHECKING:
    import numpy as np

# What a network may need, far beyond any MobileNet: large_100 has 5 million weights, and 15 million values in its maps
MOST_WEIGHTS, MOST_VALUES = 1 << 26, 1 << 27
MOST_SIDE = 4096  # pixels of a photo before the crop
COUNTER = "num_batches_tracked"  # PyTorch's batch norms count batches; TensorFlow has no such variable
CLASS_ENDPOINTS = ("Logits", "Predictions")  # of shape (N, classes)
LOGITS, FEATURES = "logits", "features"  # a classifier's output, and that of a network without one


def nodes(network: Network, classes: int) -> list[Node]:
    """Every node in the order of computation. 0 ``classes``: no classifier."""
    return [node for group in groups(network, classes) for node in group.nodes]


def outputs(network: Network, classes: int) -> tuple[str, ...]:
    """The values that the network gives, its module's first."""
    if network.head is not None:
        return network.head.outputs
    if classes:
        return (LOGITS,)
    return (next(node.name for node in reversed(nodes(network, 0))),)


def groups(network: Network, classes: int) -> Iterator[Group]:
    """The nodes by the section of rules that fills their entries. A network with a head and 0 ``classes`` has none."""
    if network.head is None:
        yield from _trunk(network, classes)
        return
    names = torchvision_names(network)
    trunk = []
    for group in _trunk(network, classes=0):
        inside = [
            node._replace(
                module=f"backbone.{node.module}" if node.module else "",
                layer=names.get(node.layer, ""),
                norm=names.get(node.norm, ""),
            )
            for node in group.nodes
        ]
        trunk += inside
        yield group._replace(nodes=inside)
    if classes:
        last = Map(trunk[-1].name, trunk[-1].endpoints[-1], network.map_channels)
        yield from network.head.groups(last, inner_map(network), classes, network.epsilon)


def inner_map(network: Network) -> Map:
    """The map inside a block that a segmenter's or detector's head takes."""
    assert network.head is not None
    _, endpoint = network.head.inner
    trunk = (node for group in _trunk(network, classes=0) for node in group.nodes)
    node = next(node for node in trunk if endpoint in node.endpoints)
    return Map(node.name, endpoint, node.shape[0])


def _trunk(network: Network, classes: int) -> tuple[Group, ...]:
    """The nodes of ``network`` without its head."""
    return _remembered(replace(network, head=None), classes)


@lru_cache(maxsize=64)  # the plan of one port asks 14 times for the nodes of the same few networks
def _remembered(network: Network, classes: int) -> tuple[Group, ...]:
    return tuple(_classifier(network, classes))


def _classifier(network: Network, classes: int) -> Iterator[Group]:
    """Stem, blocks, and what follows them up to the classifier, under timm's names."""
    after, kernel = network.endpoint_after_blocks, network.stem_kernel
    names = {"last_conv": network.last_conv, "last_norm": network.last_norm, "last_act": network.last_act}

    def convolution(given: str, endpoints: tuple[str, ...], module: str, layer: str, shape: Shape) -> Node:
        return Node(endpoints[0], "convolution", (given,), endpoints, module, layer, shape)

    stem = convolution(IMAGE, ("layer_1",), "act1", "conv_stem", (network.stem, network.channels, kernel, kernel))
    stem = stem._replace(norm="bn1", stride=network.stem_stride, activation=network.stem_activation)
    yield Group("stem", names, [stem._replace(epsilon=network.epsilon)])
    value = stem.name
    for block in network.blocks:
        found = list(_block(block, value, network.epsilon))
        yield Group(block.kind, {"block": block.scope, "module": block.module}, found)
        value = found[-1].name
    if network.last:
        shape = (network.last, network.blocks[-1].out, 1, 1)
        last = convolution(value, (after(0),), network.last_act, network.last_conv, shape)
        last = last._replace(norm=network.last_norm, epsilon=network.epsilon, activation=network.last_activation)
        value = last.name
        yield Group("last", names, [last])
    if network.backbone and not classes:
        return
    pool = after(1) if network.pools_in_layers else "global_pool"
    flat = "conv_head/flatten" if network.embedding else "classifier/flatten" if classes else FEATURES
    pooled = [Node(pool, "mean" if network.pooling == "average" else "max", (value,), (pool,), "global_pool")]
    if network.pooling == "none":
        pooled, pool = [], value
    window = (network.flat[0], network.flat[1]) if network.flat else (1, 1)
    flattened = Node(flat, "flatten", (pool,), module="global_pool", window=window)
    yield Group("", {}, [*pooled, flattened])
    value = flat
    if network.embedding:
        value, shape = after(2), (network.embedding, network.last, 1, 1)
        dense = Node(value, "dense", (flat,), (value, "global_pool"), "act2", "conv_head", shape)
        yield Group("head", names, [dense._replace(activation=network.embedding_activation)])
    if classes:
        if network.tail:
            yield from _tail(network, value, classes)
        else:
            logits = Node(LOGITS, "dense", (value,), ("Logits",), "classifier", "classifier")
            logits = logits._replace(shape=(classes, network.features))
            yield Group("classifier", names, [logits])
        chances = Node("predictions", "softmax", (LOGITS,), ("Predictions",))
        if network.predictions == "sigmoid":
            chances = chances._replace(operation="activation", activation="sigmoid")
        yield Group("", {}, [chances])


def _tail(network: Network, value: str, classes: int) -> Iterator[Group]:
    """The layers of a classifier of one's own; the last one's value is the logits."""
    width = network.features
    for number, layer in enumerate(network.tail):
        at = network.tail_layer(number)
        last = number == len(network.tail) - 1
        node = Node(LOGITS if last else at, layer.kind, (value,), ("Logits",) if last else (), at)
        if layer.kind == "dense":
            inputs, width = width, layer.out or classes
            node = node._replace(layer=at, shape=(width, inputs))
        elif layer.kind == "batch_norm":
            assert layer.epsilon is not None
            node = node._replace(norm=at, shape=(width,), epsilon=layer.epsilon)
        node = node._replace(activation=layer.activation, slope=layer.slope or 0.0, module="classifier" if last else at)
        yield Group("" if layer.kind == "activation" else layer.kind, {"layer": at}, [node])
        value = node.name


def _block(block: Block, entering: str, epsilon: float) -> Iterator[Node]:
    """The nodes of a block behind the value ``entering``."""
    at, value, number = block.module, entering, 0

    def convolution(layer: str, shape: Shape, stride: int, end: str) -> Node:
        node = Node(f"{block.endpoint}/{end}", "convolution", (value,), layer=f"{at}.{layer}", shape=shape)
        node = node._replace(endpoints=(node.name,), module=f"{at}.act{number}", norm=f"{at}.bn{number}")
        dilation = block.dilation if shape[-1] > 1 else 1
        return node._replace(epsilon=epsilon, activation=block.activation, stride=stride, dilation=dilation)

    if block.expands:
        number, fused = 1, block.kind == "fused"
        layer, kernel, stride = ("conv_exp", block.kernel, block.stride) if fused else ("conv_pw", 1, 1)
        shape = (block.expanded, block.channels_in, kernel, kernel)
        node = convolution(layer, shape, stride, "expansion_output")
        yield node
        value = node.name
    if block.depthwise:
        number += 1
        shape = (block.expanded, 1, block.kernel, block.kernel)
        node = convolution("conv_dw", shape, block.stride, "depthwise_output")._replace(groups=block.expanded)
        yield node
        value = node.name
    if block.squeezed:
        se, sides = f"{at}.se", (block.squeezed, block.expanded)
        yield Node(f"{se}/mean", "mean", (value,), module=f"{se}.pool")
        for layer, given, shape, module in (
            ("conv_reduce", f"{se}/mean", (*sides, 1, 1), "act1"),
            ("conv_expand", f"{se}.conv_reduce", (*sides[::-1], 1, 1), "gate"),
        ):
            name = f"{se}.{layer}"
            node = Node(name, "convolution", (given,), module=f"{se}.{module}", layer=name, shape=shape)
            yield node._replace(activation="gate" if module == "gate" else "relu")
        yield Node(f"{se}/scaled", "multiply", (value, f"{se}.conv_expand"), module=se)
        value = f"{se}/scaled"
    ends = (f"{block.endpoint}/output", block.endpoint)
    layer, norm = f"{at}.{block.project}", f"{at}.bn{number + 1}"
    project = Node(ends[0], "convolution", (value,), ends, at, layer, (block.out, block.expanded, 1, 1), norm, epsilon)
    if not block.residual:
        yield project
        return
    yield project._replace(name=layer, endpoints=(), module=norm)
    yield Node(ends[0], "add", (layer, entering), ends, at)


def state_dict_shapes(network: Network, classes: int) -> dict[str, Shape]:
    """Entry -> shape (OIHW for convolutions) of the network with ``classes`` outputs.

    Beside the weights there are counters of batches, and the gate where it is not 1/6.
    """
    entries: dict[str, Shape] = {} if network.stated_gate is None else {GATE_ENTRY: ()}
    for node in nodes(network, classes):
        channels = node.shape[:1]
        alone = node.operation == "batch_norm"
        if not node.layer and not alone:
            continue
        if not alone:
            entries[f"{node.layer}.weight"] = node.shape
        if not alone and (not node.norm or network.bn_folded):
            entries[f"{node.layer}.bias"] = channels
        else:
            entries |= {f"{node.norm}.{name}": channels for name in ("weight", "bias", "running_mean", "running_var")}
            entries[f"{node.norm}.{COUNTER}"] = ()
    return entries


def check_needs(network: Network, spec: Input) -> None:
    """Raise ValueError, ``key: what is wrong``, for a network that would take gigabytes to make or to run."""
    every = nodes(network, classes=1)
    weights = sum(prod(node.shape) for node in every)
    if weights > MOST_WEIGHTS:
        raise ValueError(f"network: has {weights:,} weights; at most {MOST_WEIGHTS:,} are computed")
    if max(spec.sides) / spec.crop > MOST_SIDE:
        raise ValueError(
            f"input.crop: {max(spec.sides)} pixels after a crop of {spec.crop:g}; at most {MOST_SIDE:,} before it"
        )
    check_image(network, *spec.sides)


def check_image(network: Network, height: int, width: int, count: int = 1) -> None:
    """Raise ValueError for images at which the network would compute gigabytes of values."""
    every = nodes(network, classes=1)
    sizes, values = map_sizes(every, height, width), 0
    for node in every:
        if node.operation == "convolution":  # takes a padded map, and gives one
            before = sizes.get(node.inputs[0], (1, 1))
            padded = (side + sum(same_padding(side, node.shape[2], node.stride, node.dilation)) for side in before)
            values += prod(padded) * node.shape[1] * node.groups + prod(sizes[node.name]) * node.shape[0]
    if count * values > MOST_VALUES:
        raise ValueError(
            f"input.size: {height}x{width}: the network computes {count * values:,} values for {count} image(s); at "
            f"most {MOST_VALUES:,} are computed"
        )


def is_weight(entry: str) -> bool:
    """Whether an entry of a state dict has values from TensorFlow, and is no counter and no gate."""
    return entry != GATE_ENTRY and not entry.endswith(COUNTER)


def endpoint_names(network: Network, classes: int) -> list[str]:
    """TensorFlow's endpoints (``layer_5/depthwise_output``) in the order of computation."""
    return [endpoint for node in nodes(network, classes) for endpoint in node.endpoints]


def endpoint_modules(network: Network, classes: int) -> dict[str, str]:
    """Endpoint -> the module whose output it is. ``Predictions``, the softmax of the logits, belongs to none."""
    return {endpoint: node.module for node in nodes(network, classes) for endpoint in node.endpoints if node.module}


def anchors(network: Network, height: int, width: int) -> np.ndarray:
    """The anchors of a detector for images of ``height`` x ``width``; see ``anchors_on``."""
    assert isinstance(network.head, Detection)
    found = list(groups(network, classes=1))
    sizes = map_sizes([node for group in found for node in group.nodes], height, width)
    maps = [group.nodes[0].inputs[0] for group in found if group.section == "predictor"]
    return anchors_on(network.head, [sizes[name] for name in maps])


def torchvision_names(network: Network) -> dict[str, str]:
    """Modules of the backbone with entries -> the names that torchvision's ``lraspp_mobilenet_v3_large`` gives them."""
    names: dict[str, str] = {}
    for number, group in enumerate(_trunk(network, classes=0)):
        unit = 0
        for node in group.nodes:
            if not node.layer:
                continue
            at = f"backbone.{number}" + (f".block.{unit}" if "block" in group.names else "")
            part = {"conv_reduce": "fc1", "conv_expand": "fc2"}.get(node.layer.rpartition(".")[2], "0")
            names |= {node.layer: f"{at}.{part}"} | ({node.norm: f"{at}.1"} if node.norm else {})
            unit += part != "fc1"
    return names
