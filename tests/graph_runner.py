"""Computing a stored graph with TensorFlow's operators: what the graph says is judged by what its file computes."""

import numpy as np

KERNELS = {"tflite": (1, 2, 3, 0), "tf": (0, 1, 2, 3)}  # how a convolution's axes move to HWIO
DEPTHWISE = {"tflite": (1, 2, 3, 0), "tf": (0, 1, 2, 3)}


def run_graph(tf, graph, read, image, layout="tf", wanted=None):
    """The values of ``wanted`` (the outputs if None), by name. ``read`` gives a variable's values by its name."""
    values = {}
    for operation in graph.in_order:
        given = [values[name] for name in operation.inputs]
        values[operation.name] = _compute(tf, operation, given, read, image, layout)
    return {name: np.asarray(values[name]) for name in wanted or graph.outputs}


def _compute(tf, operation, given, read, image, layout):
    kind = operation.kind
    if kind == "image":
        return tf.constant(image)
    if kind in ("convolution", "depthwise", "dense"):
        return _layer(tf, operation, given[0], read, layout)
    if kind == "bias":
        return given[0] + read(operation.weights["bias"])
    if kind == "batch_norm":
        gamma, beta, mean, variance = (read(operation.weights[role]) for role in ("gamma", "beta", "mean", "variance"))
        return (given[0] - mean) / tf.sqrt(variance + operation.epsilon) * gamma + beta
    if operation.constant:
        constant = tf.constant(operation.constant if len(operation.constant) > 1 else operation.constant[0], "float32")
        given = [constant, *given] if operation.constant_first else [*given, constant]
    if kind in ("average_pool", "max_pool"):
        pool = tf.nn.avg_pool2d if kind == "average_pool" else tf.nn.max_pool2d
        return pool(given[0], operation.window, operation.stride, operation.padding.upper())
    if kind in ("mean", "max"):
        return {"mean": tf.reduce_mean, "max": tf.reduce_max}[kind](given[0], (1, 2), keepdims=True)
    if kind == "pad":
        return tf.pad(given[0], [(0, 0), *operation.padding, (0, 0)])
    if kind == "flatten":
        return tf.reshape(given[0], (len(image), -1))
    if kind == "hard_swish":
        return given[0] * tf.nn.relu6(given[0] + 3) * (operation.slope or 1 / 6)
    if kind == "hard_sigmoid":
        return tf.nn.relu6(given[0] + 3) * operation.slope
    own = {
        "concat": lambda *parts: _concat(tf, parts), "silu": tf.nn.silu, "quantize": tf.identity, "fake_quant": tf.identity, "relu": tf.nn.relu,
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, operation.slope),
    }  # fmt: skip
    function = own.get(kind) or getattr(tf.math, kind, None) or getattr(tf.nn, kind, None)
    assert function, f"{operation}: unknown"
    return function(*given)


def _layer(tf, operation, given, read, layout):
    kernel, bias = (read(operation.weights[role]) if role in operation.weights else 0.0 for role in ("weight", "bias"))
    if operation.kind == "dense":
        kernel = kernel.reshape(kernel.shape[0], -1).T if layout == "tflite" else kernel
        return tf.reshape(given, (len(given), -1)) @ kernel + bias
    padding, dilation = operation.padding.upper(), list(operation.dilation)
    if operation.kind == "depthwise":
        stride = (1, *operation.stride, 1)
        return (
            tf.nn.depthwise_conv2d(given, kernel.transpose(DEPTHWISE[layout]), stride, padding, None, dilation) + bias
        )
    return tf.nn.conv2d(given, kernel.transpose(KERNELS[layout]), operation.stride, padding, None, dilation) + bias


def _concat(tf, parts):
    if any(len(part.shape) == 2 for part in parts):  # a mean over the map does not say whether it keeps its axes
        parts = [tf.reshape(part, (len(part), -1)) for part in parts]
    return tf.concat(parts, -1)
