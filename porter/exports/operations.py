"""A network with its weights as a list of operations: what exported graphs are written from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from porter.errors import ArtifactError
from porter.mapping.apply import fold_batch_norm
from porter.network import spec
from porter.network.layers import Layer, is_weight, layers, state_dict_shapes
from porter.network.network import TIMM_GATE, Network

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["convolution", "dense", "mean", "pool", "resize", "flatten", "multiply", "add"]
Activation = spec.Activation | Literal["gate"]
IMAGE = "image"  # the input's name in exported graphs
LINEAR = "linear"  # below the name of what an activation gives: what it takes
LOGITS = "logits"  # a classifier's output


class Operation(NamedTuple):
    """One step. ``inputs`` and ``output`` name values: TensorFlow's endpoints, or modules where it has no name.

    ``weight`` is float32, OIHW for a convolution (SAME padding, ``stride`` and ``dilation`` along both axes) and OI
    for a dense layer, batch norm folded in. A mean is over the whole map, whose axes it keeps. A ``pool`` averages over
    ``window`` (height, width) without padding, ``strides`` apart; a ``resize`` is bilinear, to the size of its second
    input, corner pixels on corner pixels. ``gate`` is ``relu6(x + 3) / 6``. ``layer`` is the module with the weights,
    ``module`` the one that gives the output, ``before`` the one that gives what the activation takes.
    """

    kind: Kind
    inputs: tuple[str, ...]
    output: str
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    activation: Activation | None = None
    layer: str = ""
    module: str = ""
    before: str = ""


class Program(NamedTuple):
    """Operations in the order of computation, on (N, ``channels``, H, W) images.

    ``endpoints`` gives the value of each of TensorFlow's endpoints; ``outputs`` are values, the logits first or
    (``features``) maps.
    """

    operations: list[Operation]
    endpoints: dict[str, str]
    outputs: list[str]
    channels: int
    features: bool = False


def classifier_program(network: Network, classes: int, arrays: Mapping[str, np.ndarray]) -> Program:
    """The classifier with the weights ``arrays``, a state dict; with 0 ``classes`` its output is the embedding.

    Raises ArtifactError where the entries are not those of the network.
    """
    _check_entries(state_dict_shapes(network, classes), arrays)
    operations, endpoints = _walk(network, layers(network, classes), arrays)
    if operations[-1].kind == "mean":  # the embedding of a network without head
        operations.append(Operation("flatten", (operations[-1].output,), "features"))
    return Program(operations, endpoints, [operations[-1].output], network.channels)


def features_program(network: Network, taps: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Program:
    """The part of the network that computes the endpoints ``taps``, feature maps. Raises as ``classifier_program``."""
    needed: list[Layer] = []
    left = set(taps)
    for layer in layers(network, classes=0):
        if not left:
            break
        needed.append(layer)
        left -= {output.endpoint for output in layer.outputs}
    shapes = state_dict_shapes(network, classes=0)
    modules = {layer.module for layer in needed} | {layer.norm for layer in needed}
    _check_entries({name: shapes[name] for name in shapes if name.rpartition(".")[0] in modules}, arrays)
    operations, endpoints = _walk(network, needed, arrays)
    return Program(operations, endpoints, [endpoints[tap] for tap in taps], network.channels, features=True)


def segmenter_program(network: Network, classes: int, arrays: Mapping[str, np.ndarray]) -> Program:
    """The segmenter: its output has the size of the images. Raises as ``classifier_program``."""
    _check_entries(state_dict_shapes(network, classes), arrays)
    head = network.segmentation
    assert head is not None
    found = list(layers(network, classes))
    trunk = [layer for layer in found if not layer.module.startswith("classifier.")]
    pooling, aspp, high, low = found[len(trunk) :]
    operations, endpoints = _walk(network, trunk, arrays)
    last, inner = endpoints[network.endpoint_after_blocks(0)], endpoints[head.low]

    def add(kind: Kind, output: str, *inputs: str, **details: Any) -> str:
        operations.append(Operation(kind, inputs, output, **details))
        return output

    def convolution(layer: Layer, value: str, scale: float = 1.0) -> str:
        weight, bias = _folded(layer, network, arrays, scale, head.epsilon)
        name, activation = layer.outputs[0].endpoint, "gate" if layer.gates else layer.activation
        if layer.gates:
            name = f"{name}/gate"
        return add("convolution", name, value, weight=weight, bias=bias, activation=activation)

    pooled = add("pool", "image_pooling/pool", last, window=tuple(head.window), strides=tuple(head.stride))
    gate = convolution(pooling, pooled)
    endpoints["image_pooling"] = f"{gate}/{LINEAR}"
    gate = add("resize", "image_pooling/resized", gate, last)
    value = convolution(aspp, last)
    endpoints["aspp0"] = value
    value = add("resize", "aspp0/resized", add("multiply", "aspp0/scaled", value, gate), inner)
    value = convolution(high, value, network.gate / TIMM_GATE)
    projected = convolution(low, inner)
    endpoints |= {"decoder_conv0": value, "feature_projection0": projected}
    endpoints["semantic"] = add("add", "semantic", value, projected)
    add("resize", LOGITS, "semantic", IMAGE)
    return Program(operations, endpoints, [LOGITS, "semantic"], network.channels)


def _walk(
    network: Network, found: Iterable[Layer], arrays: Mapping[str, np.ndarray]
) -> tuple[list[Operation], dict[str, str]]:
    """The operations of ``found``, and the value of each endpoint."""
    operations: list[Operation] = []
    endpoints: dict[str, str] = {}

    def add(kind: Kind, output: str, *inputs: str, **details: Any) -> str:
        operations.append(Operation(kind, inputs, output, **details))
        return output

    value = entering = IMAGE  # what was computed last, and the input of the block
    gated: str | None = None  # the map that a gate in the making is for
    scale = 1.0
    for layer in found:
        parent = layer.module.rpartition(".")[0]
        dense = layer.pooled and len(layer.outputs) > 0  # not squeeze-excite
        if layer.pooled and not dense and gated is None:
            gated, value = value, add("mean", f"{layer.module}/mean", value, module=f"{parent}.pool")
        elif dense and operations[-1].kind != "dense":
            value = add("flatten", f"{layer.module}/flatten", value, module=operations[-1].module)
        weight, bias = _folded(layer, network, arrays, scale)
        name = layer.outputs[0].endpoint if layer.outputs else layer.module
        value = add(
            "dense" if dense else "convolution",
            layer.module if layer.adds else LOGITS if name == "Logits" else name,
            value,
            weight=weight.reshape(weight.shape[:2]) if dense else weight,
            bias=bias,
            stride=layer.stride,
            groups=layer.shape[0] if layer.depthwise else 1,
            dilation=layer.dilation,
            activation="gate" if layer.gates else layer.activation,
            module=f"{parent}.gate" if layer.gates else _output_of(layer, parent),
            layer=layer.module,
            before=layer.norm or layer.module,
        )
        scale = 1.0
        if layer.gates:
            assert gated is not None
            value, gated = add("multiply", f"{parent}/scaled", gated, value, module=parent), None
            scale = network.gate / TIMM_GATE  # the next convolution is linear: it takes the rest of the slope
        if layer.adds:
            value = add("add", name, value, entering, module=parent)
        for output in layer.outputs:
            if output.module == "global_pool":
                value = add("mean", output.endpoint, value, module="global_pool")
            endpoints[output.endpoint] = value
        if entering == IMAGE or (layer.outputs and layer.outputs[-1].kind == "block"):
            entering = value
    return operations, endpoints


def _output_of(layer: Layer, parent: str) -> str:
    """The module that gives what a layer in ``parent`` gives, activation included, before anything is added."""
    if layer.adds:
        return layer.norm or layer.module
    return layer.outputs[0].module if layer.outputs else f"{parent}.act1"


def _folded(
    layer: Layer, network: Network, arrays: Mapping[str, np.ndarray], scale: float, epsilon: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (times ``scale``) and bias with the batch norm in them, worked out in float64 and rounded once."""
    owners = (layer.module, layer.norm)
    own = {name: arrays[name].astype("float64") for name in arrays if name.rpartition(".")[0] in owners}
    weight = own[f"{layer.module}.weight"] = own[f"{layer.module}.weight"] * scale
    if layer.norm is None or network.bn_folded:
        bias = own[f"{layer.module}.bias"]
    else:
        weight, bias = fold_batch_norm(own, layer.module, layer.norm, epsilon or network.epsilon)
    return weight.astype("float32"), bias.astype("float32")


def _check_entries(expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> None:
    for name, shape in expected.items():
        if name not in arrays and is_weight(name):
            raise ArtifactError(f"entry {name}: is missing; exports are of MobileNetV3's own layers")
        if name in arrays and arrays[name].shape != shape:
            raise ArtifactError(f"entry {name}: shape {list(arrays[name].shape)}, the network has {list(shape)}")
