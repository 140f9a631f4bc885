"""slim's network written with ``tf.nn``, from the network table and the raw TensorFlow variables.

It shares only the table with the port. Variables are read under slim's names, by TensorFlow's own reader for V2
checkpoints (it cannot read sliced V1 ones). Layouts and padding are TensorFlow's. It runs at any size, in float32 or
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from porter.errors import ParityError
from porter.mapping.axes import to_target
from porter.mapping.files import list_variants, load_variant
from porter.mapping.rules import Expected, expected_variables
from porter.network.network import Block, Network
from porter.network.nodes import torchvision_names
from porter.network.spec import Activation
from porter.parity.references.live_tensorflow import stored_values, tensorflow
from porter.parity.references.reference import Endpoints, Reference, Values, noise_between
from porter.parity.references.tf_heads import HEADS, Layers, Pair, activated
from porter.port import Port

Fetch = Callable[[str], Any]
Quantize = Callable[[str, Any], Any]  # (module or entry, tensor) -> tensor


class Net(NamedTuple):
    """TensorFlow, the network to compute, whether it ends in a classifier, and the entries of a tail by name.

    ``normalize(x, mean, variance, beta, gamma, epsilon, decay)`` is a batch norm.
    """

    tf: Any
    network: Network
    classifier: bool
    entry: Fetch
    normalize: Callable[..., Any]


def tf_nn(port: Port) -> Reference:
    """The reference for the port's checkpoint, in float64 and float32, or in 8-bit levels. Raises as ``graph`` does."""
    tf = tensorflow()
    if port.plan.ranges:
        return Reference("tf.nn graph, fake quantisation", _levels(tf, graph(port, "float64")), "levels")
    exact, single = graph(port, "float64"), graph(port, "float32")

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        with tf.device("/CPU:0"):
            pairs = zip(exact(tf.constant(images.astype("float64"))), single(tf.constant(images)), strict=True)
            for (name, double), (_, rounded) in pairs:
                if name in names:
                    yield name, Values(double.numpy(), noise_between(rounded.numpy(), double.numpy()))

    return Reference("tf.nn graph", run)


def _levels(tf: Any, forward: Callable[[Any], Layers]) -> Callable[[np.ndarray, Sequence[str]], Endpoints]:
    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        with tf.device("/CPU:0"):
            for name, tensor in forward(tf.constant(images.astype("float64"))):
                if name in names:
                    yield name, Values(tensor.numpy())

    return run


def graph(port: Port, dtype: str) -> Callable[[Any], Layers]:
    """The port's network as a function of a TensorFlow tensor (N, H, W, C): yields endpoints one at a time.

    If the port has ranges, batch norms are folded into the convolutions, sums are in float64, and TensorFlow's own
    FakeQuantWithMinMaxVars rounds weights and activations between them. Raises ParityError for the levels of a .tflite,
    whose integer kernels compute differently.
    """
    checkpoint, network = port.checkpoint, port.network
    fake_quant = bool(port.plan.ranges)
    if network.bn_folded and fake_quant:
        raise ParityError(f"{checkpoint.given}: has integer kernels of its own; use the reference tflite")
    tf = tensorflow()
    if network.bn_folded:
        return _of_biases(tf, port, dtype)
    names, stored = slim_names(port), stored_values(checkpoint)

    def fetch(name: str) -> Any:
        return tf.constant(stored(names[name].source).astype("float64" if fake_quant else dtype))

    def quantize(at: str, x: Any) -> Any:
        if not fake_quant or at not in port.plan.ranges:
            return x
        low, high = (stored(f"{port.plan.ranges[at]}/{end}") for end in ("min", "max"))
        return tf.cast(tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, tf.float32), low, high), x.dtype)

    net = Net(
        *(tf, network, port.classes > 0, _entries(tf, port, stored, "float64" if fake_quant else dtype)),
        lambda *norm: tf.nn.batch_normalization(*norm[:-1]),  # decay is for training
    )
    return lambda x: forward(net, fetch, quantize, x, folded=fake_quant)


def slim_names(port: Port) -> dict[str, Expected]:
    """The port's variables by slim's names, without scope; another tool's names become the same entries."""
    mapping, network = port.mapping, port.network
    rules = load_variant(list_variants()[0])
    slim = msgspec.structs.replace(mapping, names={}, variables={}, rules=rules.rules, batch_norm=rules.batch_norm)
    own = {want.target: want for want in expected_variables(mapping, network, port.classes)}
    return {want.local: own[want.target] for want in expected_variables(slim, network, port.classes)}


def _entries(tf: Any, port: Port, stored: Callable[[str], np.ndarray], dtype: str) -> Fetch:
    """Entries of the state dict from the source, or the numbers that it leaves out: those of a tail have no scopes."""
    wanted = {want.target: want for want in expected_variables(port.mapping, port.network, port.classes)}

    def entry(name: str) -> Any:
        if name in port.mapping.constants:
            return tf.constant(port.mapping.constants[name], dtype)
        return tf.constant(to_target(wanted[name].axes, stored(wanted[name].source)).astype(dtype))

    return entry


def _of_biases(tf: Any, port: Port, dtype: str) -> Callable[[Any], Layers]:
    """A network whose batch norms are biases: of a .tflite (weights OHWI or 1HWC) or a TensorFlow.js model."""
    checkpoint, network = port.checkpoint, port.network
    entries = {want.target: want for want in expected_variables(port.mapping, network, port.classes)}
    renamed = {} if network.head is None else torchvision_names(network)

    def pair(_scope: str, module: str) -> tuple[Any, Any]:
        weights, bias = (entries[f"{renamed.get(module, module)}.{part}"] for part in ("weight", "bias"))
        kernel = checkpoint[weights.source].read()
        if weights.axes.endswith(("ohwi", "1hwc")):
            kernel = kernel.transpose(1, 2, 3, 0)
        # relu6(x + 3) as one operation: the converter has added the 3 to the bias
        three = 3.0 if bias.gate_bias and checkpoint[bias.source].fused == "relu6" else 0.0
        return tf.constant(kernel.astype(dtype)), tf.constant(checkpoint[bias.source].read().astype(dtype) - three)

    def convolved(
        scope: str, module: str, _norm: str, x: Any, stride: int = 1, rate: int = 1, **_epsilon: float
    ) -> Any:
        kernel, bias = pair(scope, module)
        return _convolution(tf, scope, x, kernel, stride, rate) + bias

    net = Net(
        *(tf, network, port.classes > 0, _entries(tf, port, stored_values(checkpoint), dtype)),
        lambda *norm: tf.nn.batch_normalization(*norm[:-1]),  # decay is for training
    )
    return lambda x: _layers(net, pair, lambda _at, y: y, convolved, x)


def forward(net: Net, fetch: Fetch, quantize: Quantize, x: Any, folded: bool = False) -> Layers:
    """The network of slim's variables; ``folded``: batch norms are folded into weights, as where it computes 8 bits."""
    tf, network = net.tf, net.network

    def rounded(values: Any) -> Any:
        """``values`` rounded to float32, as a folded checkpoint is."""
        return tf.cast(tf.cast(values, tf.float32), x.dtype)

    def convolved(
        scope: str, module: str, norm: str, x: Any, stride: int = 1, rate: int = 1, epsilon: float = network.epsilon
    ) -> Any:
        mean, variance, beta, gamma = (
            fetch(f"{scope}/BatchNorm/{name}") for name in ("moving_mean", "moving_variance", "beta", "gamma")
        )
        depthwise = scope.endswith("depthwise")
        kernel = fetch(f"{scope}/depthwise_weights" if depthwise else f"{scope}/weights")
        if not folded:
            x = _convolution(tf, scope, x, kernel, stride, rate)
            return net.normalize(x, mean, variance, beta, gamma, epsilon, network.decay)
        factor = gamma / tf.sqrt(variance + epsilon)
        kernel = quantize(f"{module}.weight", rounded(kernel * (factor[:, None] if depthwise else factor)))
        return quantize(norm, _convolution(tf, scope, x, kernel, stride, rate) + rounded(beta - mean * factor))

    def pair(scope: str, _module: str) -> tuple[Any, Any]:
        return fetch(f"{scope}/weights"), fetch(f"{scope}/biases")

    return _layers(net, pair, quantize, convolved, quantize("input", x))


def _convolution(tf: Any, scope: str, x: Any, kernel: Any, stride: int, rate: int) -> Any:
    if scope.endswith("depthwise"):
        return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME", dilations=[rate, rate])
    return tf.nn.conv2d(x, kernel, stride, "SAME")


def _layers(
    net: Net,
    pair: Pair,
    quantize: Quantize,
    convolved: Callable[..., Any],
    x: Any,
) -> Layers:
    """The network. ``convolved(scope, module, norm, x, stride, rate)`` is a convolution with its batch norm.

    ``pair`` gives weights (HWIO) and bias of a convolution without batch norm.
    """

    tf, network = net.tf, net.network

    def activate(kind: Activation, module: str, x: Any) -> Any:
        return quantize(module, activated(tf, kind, x))

    def biased(scope: str, module: str, x: Any) -> Any:
        weights, bias = pair(scope, module)
        return quantize(module, tf.nn.conv2d(x, quantize(f"{module}.weight", weights), 1, "SAME") + bias)

    def block_outputs(block: Block, x: Any) -> Layers:
        inputs, scope, module = x, block.scope, block.module
        number = 0
        if block.expands:
            number += 1
            name, stride = ("conv_exp", block.stride) if block.kind == "fused" else ("conv_pw", 1)
            x = convolved(f"{scope}/expand", f"{module}.{name}", f"{module}.bn{number}", x, stride)
            x = activate(block.activation, f"{module}.act{number}", x)
            yield f"{block.endpoint}/expansion_output", x
        if block.depthwise:
            number += 1
            at = f"{scope}/depthwise", f"{module}.conv_dw", f"{module}.bn{number}"
            x = convolved(*at, x, block.stride, block.dilation)
            x = activate(block.activation, f"{module}.act{number}", x)
            yield f"{block.endpoint}/depthwise_output", x
        if block.squeezed:
            se = f"{module}.se"
            mean = quantize(f"{se}.pool", tf.reduce_mean(x, [1, 2], keepdims=True))
            squeezed = biased(f"{scope}/squeeze_excite/Conv", f"{se}.conv_reduce", mean)
            squeezed = quantize(f"{se}.act1", tf.nn.relu(squeezed))
            gate = biased(f"{scope}/squeeze_excite/Conv_1", f"{se}.conv_expand", squeezed)
            gate = quantize(f"{se}.gate.relu6", tf.nn.relu6(gate + 3.0))
            x = quantize(se, x * quantize(f"{se}.gate", gate * network.gate))
        x = convolved(f"{scope}/project", f"{module}.{block.project}", f"{module}.bn{number + 1}", x)
        x = quantize(module, x + inputs if block.residual else x)
        yield f"{block.endpoint}/output", x
        yield block.endpoint, x

    x = convolved("Conv", "conv_stem", "bn1", x, network.stem_stride)
    x = activate(network.stem_activation, "act1", x)
    yield "layer_1", x
    low = x
    for block in network.blocks:
        for name, value in block_outputs(block, x):
            if network.head is not None and name == network.head.inner[1]:
                low = value
            yield name, value
        x = value  # the last endpoint is the block's output
    if network.last:
        x = convolved("Conv_1", network.last_conv, network.last_norm, x)
        x = activate(network.last_activation, network.last_act, x)
        yield network.endpoint_after_blocks(0), x
    if network.head is not None:
        yield from HEADS[type(network.head)](network, convolved, pair, x, low)
    else:
        yield from _after_map(net, biased, activate, quantize, x)


def _after_map(net: Net, biased: Any, activate: Any, quantize: Quantize, x: Any) -> Layers:
    """Pooling, head and classifier, as far as the network has them."""
    tf, network, classifier, _, _ = net
    after = network.endpoint_after_blocks
    pooled = after(1) if network.pools_in_layers else "global_pool"
    if network.pooling == "none":
        x = tf.reshape(x, [tf.shape(x)[0], 1, 1, -1])
    else:
        reduce = tf.reduce_max if network.pooling == "max" else tf.reduce_mean
        x = quantize("global_pool", reduce(x, [1, 2], keepdims=True))
        yield pooled, x
    if network.embedding:
        x = activate(network.embedding_activation, "act2", biased("Conv_2", "conv_head", x))
        yield after(2), x
        yield "global_pool", x
    if classifier:
        x = (
            _tail(net, quantize, tf.squeeze(x, [1, 2]))
            if network.tail
            else tf.squeeze(biased("Logits/Conv2d_1c_1x1", "classifier", x), [1, 2])
        )
        yield "Logits", x
        yield "Predictions", tf.nn.sigmoid(x) if network.predictions == "sigmoid" else tf.nn.softmax(x)


def _tail(net: Net, quantize: Quantize, x: Any) -> Any:
    """(N, features) -> (N, classes), through a classifier of several layers."""
    tf, network, entry = net.tf, net.network, net.entry
    for number, layer in enumerate(network.tail):
        at = network.tail_layer(number)
        if layer.kind == "dense":
            weights = quantize(f"{at}.weight", entry(f"{at}.weight"))
            x = quantize(at, tf.linalg.matmul(x, weights, transpose_b=True) + entry(f"{at}.bias"))
        elif layer.kind == "batch_norm":
            mean, variance, beta, gamma = (
                entry(f"{at}.{part}") for part in ("running_mean", "running_var", "bias", "weight")
            )
            decay = net.network.decay if layer.decay is None else layer.decay
            x = net.normalize(x, mean, variance, beta, gamma, layer.epsilon, decay)
        else:
            assert layer.activation is not None
            x = quantize(at, activated(tf, layer.activation, x, layer.slope))
    return x
