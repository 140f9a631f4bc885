"""slim's network written again with ``tf.nn``, from the network table and the raw TensorFlow variables.

It shares nothing with the port but the table: variables come by their slim names through TensorFlow's own
reader where the source is a V2 checkpoint (it cannot read sliced V1 ones), layouts stay TensorFlow's,
padding is TensorFlow's. It runs at any size, in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from porter.loaders import Checkpoint
from porter.mapping.network import Block, Network
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Endpoints, Reference

Fetch = Callable[[str], Any]


def tf_nn(checkpoint: Checkpoint, network: Network, scope: str, dtype: str) -> Reference:
    """The reference for ``checkpoint``. ``network.gate`` must be the checkpoint's own."""
    tf = tensorflow()
    stored: Callable[[str], np.ndarray]
    if checkpoint.format == "bundle":
        reader = tf.train.load_checkpoint(str(checkpoint.path))
        stored = lambda name: reader.get_tensor(checkpoint[name].stored_as)  # noqa: E731
    else:
        stored = lambda name: checkpoint[name].read()  # noqa: E731

    def fetch(name: str) -> Any:
        return tf.constant(stored(f"{scope}/{name}").astype(dtype))

    def run(images: np.ndarray) -> Endpoints:
        with tf.device("/CPU:0"):
            found = _forward(tf, network, fetch, tf.constant(images.astype(dtype)))
        return {name: tensor.numpy() for name, tensor in found.items()}

    return Reference(f"tf.nn graph ({dtype})", run, dtype=dtype)


def _forward(tf: Any, network: Network, fetch: Fetch, x: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def activate(kind: str, x: Any) -> Any:
        return tf.nn.relu(x) if kind == "relu" else x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def normalize(scope: str, x: Any) -> Any:
        mean, variance, beta, gamma = (
            fetch(f"{scope}/BatchNorm/{name}") for name in ("moving_mean", "moving_variance", "beta", "gamma")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, network.epsilon)

    def conv(scope: str, x: Any, stride: int = 1) -> Any:
        return tf.nn.conv2d(x, fetch(f"{scope}/weights"), stride, "SAME")

    def biased(scope: str, x: Any) -> Any:
        return conv(scope, x) + fetch(f"{scope}/biases")

    def block_output(block: Block, x: Any) -> Any:
        inputs, scope = x, block.scope
        if not block.separable:
            x = activate(block.activation, normalize(f"{scope}/expand", conv(f"{scope}/expand", x)))
            found[f"{block.endpoint}/expansion_output"] = x
        strides = [1, block.stride, block.stride, 1]
        x = tf.nn.depthwise_conv2d(x, fetch(f"{scope}/depthwise/depthwise_weights"), strides, "SAME")
        x = activate(block.activation, normalize(f"{scope}/depthwise", x))
        found[f"{block.endpoint}/depthwise_output"] = x
        if block.squeezed:
            mean = tf.reduce_mean(x, [1, 2], keepdims=True)
            squeezed = tf.nn.relu(biased(f"{scope}/squeeze_excite/Conv", mean))
            x *= tf.nn.relu6(biased(f"{scope}/squeeze_excite/Conv_1", squeezed) + 3.0) * network.gate
        x = normalize(f"{scope}/project", conv(f"{scope}/project", x))
        return x + inputs if block.residual else x

    after = network.endpoint_after_blocks
    x = found["layer_1"] = activate(network.stem_activation, normalize("Conv", conv("Conv", x, network.stem_stride)))
    for block in network.blocks:
        x = block_output(block, x)
        found[f"{block.endpoint}/output"] = found[block.endpoint] = x
    x = found[after(0)] = activate(network.last_activation, normalize("Conv_1", conv("Conv_1", x)))
    x = found[after(1)] = tf.reduce_mean(x, [1, 2], keepdims=True)
    x = found[after(2)] = found["global_pool"] = activate(network.head_activation, biased("Conv_2", x))
    x = found["Logits"] = tf.squeeze(biased("Logits/Conv2d_1c_1x1", x), [1, 2])
    found["Predictions"] = tf.nn.softmax(x)
    return found
