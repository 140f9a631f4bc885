"""The one walk over a network: every layer with weights, in the order of computation, and what follows from it.

Names are timm's and slim's; those of segmenters torchvision's. tests/test_network.py holds this against the PyTorch
network itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from porter.network.network import GATE_ENTRY, Block, Network
from porter.network.spec import Activation
from porter.network.torchvision_names import torchvision_names

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"  # PyTorch's batch norms count batches; TensorFlow has no such variable
Kind = Literal["activation", "block", "pool", "logits", "head"]


class Output(NamedTuple):
    """A TensorFlow endpoint, the module whose output it is, and what kind of thing that is."""

    endpoint: str
    module: str
    kind: Kind


class Layer(NamedTuple):
    """A convolution or linear layer.

    ``module`` and ``scope`` are its names in the state dict and below slim's scope; ``shape`` is that of its weight
    (OIHW, OI); ``norm`` the batch norm behind it. ``outputs`` are the endpoints that are there once it has run, with
    what follows it up to the next layer. ``pooled`` tells that it works on one position, not on a map. ``activation``
    follows the batch norm; a ``depthwise`` layer has a kernel for each channel; ``gates`` tells that squeeze-excite's
    gate follows, with which the map before is multiplied, and ``adds`` that the block's input is added.
    """

    module: str
    scope: str
    shape: Shape
    norm: str | None = None
    stride: int = 1
    outputs: tuple[Output, ...] = ()
    pooled: bool = False
    activation: Activation | None = None
    dilation: int = 1
    depthwise: bool = False
    gates: bool = False
    adds: bool = False


def layers(network: Network, classes: int) -> Iterator[Layer]:
    """Every layer with weights, in the order of computation. 0 ``classes``: no classifier."""
    if network.inner_map is None:
        yield from _classifier(network, classes)
        return
    names = torchvision_names(network)
    for layer in _classifier(network, classes=0):
        outputs = tuple(output._replace(module=names[output.module]) for output in layer.outputs)
        yield layer._replace(module=names[layer.module], norm=layer.norm and names[layer.norm], outputs=outputs)
    if network.segmentation is not None:
        yield from _segmentation(network, network.segmentation.filters, classes)
    else:
        yield from _detection(network, classes)


def _detection(network: Network, classes: int) -> Iterator[Layer]:
    """The head of a detector (object_detection's feature_map_generators.py and box predictors).

    ``classes`` count the background. Scopes of predictors lie two above that of the network.
    """
    assert network.detection is not None

    def output(endpoint: str, module: str) -> tuple[Output, ...]:
        return (Output(endpoint, module, "head"),)

    def unit(module: str, scope: str, shape: Shape, stride: int = 1, depthwise: bool = False) -> Layer:
        outputs = output(scope.removeprefix("../../"), f"{module}.2")
        layer = Layer(f"{module}.0", scope, shape, f"{module}.1", stride, outputs, activation="relu6")
        return layer._replace(depthwise=depthwise)

    last, channels = network.last_endpoint, [network.inner_channels, network.map_channels]
    for number, depth in enumerate(network.detection.extra):
        at, level, half = f"extras.{number}", number + 2, depth // 2
        yield unit(f"{at}.0", f"{last}_1_Conv2d_{level}_1x1_{half}", (half, channels[-1], 1, 1))
        scope = f"{last}_2_Conv2d_{level}_3x3_s2_{depth}"
        yield unit(f"{at}.1", f"{scope}_depthwise", (half, 1, 3, 3), stride=2, depthwise=True)
        yield unit(f"{at}.2", scope, (depth, half, 1, 1))
        channels.append(depth)
    for level, (count, inputs) in enumerate(zip(network.boxes, channels, strict=True)):
        for module, name, values in (("boxes", "BoxEncoding", 4), ("classes", "Class", classes)):
            at, scope = f"{module}.{level}", f"../../BoxPredictor_{level}/{name}Predictor"
            yield unit(f"{at}.0", f"{scope}_depthwise", (inputs, 1, 3, 3), depthwise=True)
            ends = output(scope.removeprefix("../../"), f"{at}.1")
            yield Layer(f"{at}.1", scope, (count * values, inputs, 1, 1), outputs=ends)


def _segmentation(network: Network, filters: int, classes: int) -> Iterator[Layer]:
    """The head of a segmenter (research/deeplab/model.py); scopes are beside that of the network."""

    def output(endpoint: str, module: str) -> tuple[Output, ...]:
        return (Output(endpoint, module, "head"),)

    at, last = "classifier", network.map_channels
    gate = output("image_pooling", f"{at}.scale.1")  # before the gate, whose constant may be folded away
    yield Layer(f"{at}.scale.1", "image_pooling", (filters, last, 1, 1), outputs=gate, gates=True)
    shape, aspp = (filters, last, 1, 1), output("aspp0", f"{at}.cbr")
    yield Layer(f"{at}.cbr.0", "aspp0", shape, f"{at}.cbr.1", outputs=aspp, activation="relu")
    high, low = f"{at}.high_classifier", f"{at}.low_classifier"
    yield Layer(high, "decoder/decoder_conv0", (classes, filters, 1, 1), outputs=output("decoder_conv0", high))
    ends = (*output("feature_projection0", low), *output("semantic", at))
    yield Layer(low, "decoder/feature_projection0", (classes, network.inner_channels, 1, 1), outputs=ends)


def _classifier(network: Network, classes: int) -> Iterator[Layer]:
    """The layers of a classifier, under timm's names."""
    kernel, after = network.stem_kernel, network.endpoint_after_blocks
    shape: Shape = (network.stem, network.channels, kernel, kernel)
    outputs: tuple[Output, ...] = (Output("layer_1", "act1", "activation"),)
    act = network.stem_activation
    yield Layer("conv_stem", "Conv", shape, "bn1", network.stem_stride, outputs, activation=act)
    for block in network.blocks:
        yield from _block(block)
    pool = after(1) if network.pools_in_layers else "global_pool"
    if network.last:
        outputs = (Output(after(0), network.last_act, "activation"),)
        outputs += () if network.backbone else (Output(pool, "global_pool", "pool"),)
        shape, act = (network.last, network.blocks[-1].out, 1, 1), network.last_activation
        yield Layer(network.last_conv, "Conv_1", shape, network.last_norm, outputs=outputs, activation=act)
    if network.head:
        outputs = Output(after(2), "act2", "activation"), Output("global_pool", "act2", "pool")
        shape, act = (network.head, network.last, 1, 1), network.head_activation
        yield Layer("conv_head", "Conv_2", shape, outputs=outputs, pooled=True, activation=act)
    if classes:
        outputs = (Output("Logits", "classifier", "logits"),)
        yield Layer("classifier", "Logits/Conv2d_1c_1x1", (classes, network.features), outputs=outputs, pooled=True)


def _block(block: Block) -> Iterator[Layer]:
    at, scope, number = block.module, block.scope, 0

    def convolution(name: str, below: str, shape: Shape, stride: int, endpoint: str) -> Layer:
        dilation = block.dilation if shape[-1] > 1 else 1
        outputs = (Output(f"{block.endpoint}/{endpoint}", f"{at}.act{number}", "activation"),)
        norm, act = f"{at}.bn{number}", block.activation
        return Layer(
            f"{at}.{name}", f"{scope}/{below}", shape, norm, stride, outputs, activation=act, dilation=dilation
        )

    if block.expands:
        number += 1
        fused = block.kind == "fused"
        name, kernel = ("conv_exp", block.kernel) if fused else ("conv_pw", 1)
        shape = (block.expanded, block.channels_in, kernel, kernel)
        yield convolution(name, "expand", shape, block.stride if fused else 1, "expansion_output")
    if block.depthwise:
        number += 1
        shape = (block.expanded, 1, block.kernel, block.kernel)
        layer = convolution("conv_dw", "depthwise", shape, block.stride, "depthwise_output")
        yield layer._replace(depthwise=True)
    if block.squeezed:
        se, scope_below, sides = f"{at}.se", f"{scope}/squeeze_excite", (block.squeezed, block.expanded)
        shape = (*sides, 1, 1)
        yield Layer(f"{se}.conv_reduce", f"{scope_below}/Conv", shape, pooled=True, activation="relu")
        shape = (*sides[::-1], 1, 1)
        yield Layer(f"{se}.conv_expand", f"{scope_below}/Conv_1", shape, pooled=True, gates=True)
    ends = tuple(Output(endpoint, at, "block") for endpoint in (f"{block.endpoint}/output", block.endpoint))
    stride = block.stride if block.kind == "projection" else 1
    shape = (block.out, block.expanded, 1, 1)
    norm = f"{at}.bn{number + 1}"
    yield Layer(f"{at}.{block.project}", f"{scope}/project", shape, norm, stride, ends, adds=block.residual)


def state_dict_shapes(network: Network, classes: int) -> dict[str, Shape]:
    """Entry -> shape (OIHW for convolutions) of the classifier with ``classes`` outputs.

    Beside the weights there are counters of batches, and the gate where it is not 1/6.
    """
    entries: dict[str, Shape] = {} if network.stated_gate is None else {GATE_ENTRY: ()}
    for layer in layers(network, classes):
        entries[f"{layer.module}.weight"] = layer.shape
        channels = layer.shape[:1]
        if layer.norm is None or network.bn_folded:
            entries[f"{layer.module}.bias"] = channels
        else:
            entries |= {f"{layer.norm}.{name}": channels for name in ("weight", "bias", "running_mean", "running_var")}
            entries[f"{layer.norm}.{COUNTER}"] = ()
    return entries


def is_weight(entry: str) -> bool:
    """Whether an entry of a state dict has values from TensorFlow, and is no counter and no gate."""
    return entry != GATE_ENTRY and not entry.endswith(COUNTER)
