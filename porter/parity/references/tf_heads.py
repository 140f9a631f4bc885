"""Heads of segmenters and detectors written with ``tf.nn``, from the network table; see tf_nn.py.

``convolved(scope, module, norm, x, ...)`` is a convolution with batch norm; ``pair(scope, module)`` gives weights
(HWIO) and bias of a convolution without. Scopes are slim's, relative to the scope above the network and its head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from porter.network.detection import Detection
from porter.network.network import Head, Network
from porter.network.segmentation import Segmentation
from porter.network.spec import TailActivation
from porter.parity.references.live_tensorflow import tensorflow


def resize_exactly(tf: Any, x: Any, size: Any) -> Any:
    """``x`` (N, h, w, C) float64 resized to ``size``, an int32 tensor of height and width.

    Corner pixels map to corner pixels: output i lies at i * (inputs - 1) / (outputs - 1), and the weight of an input
    falls from 1 to 0 over one pixel (tensorflow/core/kernels/image/resize_bilinear_op.cc).
    """
    before = tf.shape(x)[1:3]

    def weights(axis: int) -> Any:
        inputs, outputs = (tf.cast(sides[axis], tf.float64) for sides in (before, size))
        scale = tf.where(outputs > 1, (inputs - 1) / tf.maximum(outputs - 1, 1), tf.zeros((), tf.float64))
        positions = tf.range(outputs, dtype=tf.float64) * scale
        return tf.maximum(1 - tf.abs(positions[:, None] - tf.range(inputs, dtype=tf.float64)[None]), 0)

    return tf.einsum("nHwc,Ww->nHWc", tf.einsum("nhwc,Hh->nHwc", x, weights(0)), weights(1))


def splice_resize(graph: Any, node: Any) -> None:
    """Replace ``node`` in ``graph`` (a GraphDef) by ``resize_exactly``, under the same name."""
    tf = tensorflow()
    with tf.Graph().as_default() as own:
        x = tf.compat.v1.placeholder(tf.float64, [None, None, None, None], "x")
        size = tf.compat.v1.placeholder(tf.int32, [2], "size")
        resize_exactly(tf, x, size)
        definition, last = own.as_graph_def(), own.get_operations()[-1].name
    given = {"x": node.input[0], "size": node.input[1]}
    for made in definition.node:
        if made.name in given:
            continue
        copy = graph.node.add()
        copy.CopyFrom(made)
        copy.name = node.name if made.name == last else f"{node.name}/float64/{made.name}"
        del copy.input[:]
        copy.input.extend(given.get(source, f"{node.name}/float64/{source}") for source in made.input)


Layers = Iterator[tuple[str, Any]]  # endpoint, TensorFlow tensor NHWC
Convolved = Callable[..., Any]
Pair = Callable[[str, str], tuple[Any, Any]]  # (scope, module)


def activated(tf: Any, kind: TailActivation, x: Any, slope: float | None = None) -> Any:
    """``x`` after the activation ``kind``, with the ``slope`` of leaky_relu. Raises KeyError if there is none."""
    functions: dict[TailActivation, Callable[[Any], Any]] = {
        "relu": tf.nn.relu,
        "relu6": tf.nn.relu6,
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
        "tanh": tf.nn.tanh,
        "sigmoid": tf.nn.sigmoid,
        "silu": lambda x: x * tf.nn.sigmoid(x),
        "elu": tf.nn.elu,
        "selu": tf.nn.selu,
        "gelu": lambda x: x * (1.0 + tf.math.erf(x * math.sqrt(0.5))) * 0.5,
        "leaky_relu": lambda x: tf.maximum(x, x * slope),  # tf.nn's keeps the slope in float32
    }
    return functions[kind](x)


def segmenter(network: Network, convolved: Convolved, pair: Pair, x: Any, low: Any) -> Layers:
    """LR-ASPP on the last map ``x`` and the inner map ``low`` (research/deeplab/model.py)."""
    tf, head = tensorflow(), network.head
    assert isinstance(head, Segmentation)

    def biased(scope: str, module: str, x: Any) -> Any:
        weights, bias = pair(scope, f"classifier.{module}")
        return tf.nn.conv2d(x, weights, 1, "SAME") + bias

    def resized(x: Any, like: Any) -> Any:
        size = tf.shape(like)[1:3]
        if x.dtype == tf.float64:
            return resize_exactly(tf, x, size)
        return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)

    window = [min(side, most) for side, most in zip(x.shape[1:3], head.window, strict=True)]
    pooled = biased("image_pooling", "scale.1", tf.nn.avg_pool2d(x, window, head.stride, "VALID"))
    yield "image_pooling", pooled
    gate = tf.nn.relu6(pooled + 3.0) * network.gate
    aspp = tf.nn.relu(convolved("aspp0", "classifier.cbr.0", "classifier.cbr.1", x, epsilon=head.epsilon))
    yield "aspp0", aspp
    high = biased("decoder/decoder_conv0", "high_classifier", resized(aspp * resized(gate, x), low))
    yield "decoder_conv0", high
    projected = biased("decoder/feature_projection0", "low_classifier", low)
    yield "feature_projection0", projected
    yield "semantic", high + projected


def detector(network: Network, convolved: Convolved, pair: Pair, x: Any, first: Any) -> Layers:
    """SSDLite on the last map ``x`` and the inner map ``first`` (object_detection's SSD feature extractors)."""
    tf, head = tensorflow(), network.head
    assert isinstance(head, Detection)
    maps = [first, x]
    last = network.endpoint_after_blocks(0) if network.last else network.blocks[-1].endpoint
    for level, depth in enumerate(head.extra, 2):
        narrow, wide = f"{last}_1_Conv2d_{level}_1x1_{depth // 2}", f"{last}_2_Conv2d_{level}_3x3_s2_{depth}"
        for number, (scope, stride) in enumerate(((narrow, 1), (f"{wide}_depthwise", 2), (wide, 1))):
            at = f"extras.{level - 2}.{number}"
            x = tf.nn.relu6(convolved(scope, f"{at}.0", f"{at}.1", x, stride))
            yield scope, x
        maps.append(x)
    for level, given in enumerate(maps):
        for module, name in (("boxes", "BoxEncodingPredictor"), ("classes", "ClassPredictor")):
            scope, at = f"BoxPredictor_{level}/{name}", f"{module}.{level}"
            x = tf.nn.relu6(convolved(f"{scope}_depthwise", f"{at}.0.0", f"{at}.0.1", given))
            yield f"{scope}_depthwise", x
            weights, bias = pair(scope, f"{at}.1")
            yield scope, tf.nn.conv2d(x, weights, 1, "SAME") + bias


HEADS: dict[type[Head], Callable[..., Layers]] = {Segmentation: segmenter, Detection: detector}
