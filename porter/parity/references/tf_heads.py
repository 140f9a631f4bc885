"""The heads of segmenters and detectors written again with ``tf.nn``, from the network table; see tf_nn.py.

``convolved(scope, module, norm, x, ...)`` is a convolution with its batch norm, ``pair(scope, module)`` gives weights
(HWIO) and bias of one without. Scopes are below slim's; ``../`` leads out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from porter.architecture.network import Network
from porter.architecture.table import Activation
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.resize import resize_exactly

Layers = Iterator[tuple[str, Any]]  # endpoint, TensorFlow tensor NHWC
Convolved = Callable[..., Any]
Pair = Callable[[str, str], tuple[Any, Any]]
ROOT = "../../"  # where a detector's predictors lie, beside its feature extractor


def activated(tf: Any, kind: Activation, x: Any) -> Any:
    """``x`` behind the activation ``kind``. Raises KeyError for one that is none of the table's."""
    functions: dict[Activation, Callable[[Any], Any]] = {
        "relu": tf.nn.relu,
        "relu6": tf.nn.relu6,
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    }
    return functions[kind](x)


def last_map(network: Network, convolved: Convolved, x: Any) -> Generator[tuple[str, Any], None, Any]:
    """The last convolution; gives its map back as well."""
    tf = tensorflow()
    x = convolved("Conv_1", network.last_conv, network.last_norm, x)
    x = activated(tf, network.last_activation, x)
    yield network.last_endpoint, x
    return x


def segmenter(network: Network, convolved: Convolved, pair: Pair, x: Any, low: Any) -> Layers:
    """LR-ASPP on the last block's map ``x`` and the inner map ``low`` (research/deeplab/model.py)."""
    tf, head = tensorflow(), network.segmentation
    assert head is not None
    x = yield from last_map(network, convolved, x)

    def biased(scope: str, x: Any) -> Any:
        weights, bias = pair(f"../{scope}", "")
        return tf.nn.conv2d(x, weights, 1, "SAME") + bias

    def resized(x: Any, like: Any) -> Any:
        size = tf.shape(like)[1:3]
        if x.dtype == tf.float64:
            return resize_exactly(tf, x, size)
        return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)

    window = [min(side, most) for side, most in zip(x.shape[1:3], head.window, strict=True)]
    pooled = biased("image_pooling", tf.nn.avg_pool2d(x, window, head.stride, "VALID"))
    yield "image_pooling", pooled
    gate = tf.nn.relu6(pooled + 3.0) * network.gate
    aspp = tf.nn.relu(convolved("../aspp0", "", "", x, epsilon=head.epsilon))
    yield "aspp0", aspp
    high = biased("decoder/decoder_conv0", resized(aspp * resized(gate, x), low))
    yield "decoder_conv0", high
    projected = biased("decoder/feature_projection0", low)
    yield "feature_projection0", projected
    yield "semantic", high + projected


def detector(network: Network, convolved: Convolved, pair: Pair, x: Any, first: Any) -> Layers:
    """SSDLite on the last block's map ``x`` and the inner map ``first`` (object_detection's SSD feature extractors)."""
    tf, head = tensorflow(), network.detection
    assert head is not None
    if network.last:
        x = yield from last_map(network, convolved, x)
    maps, last = [first, x], network.last_endpoint
    for level, depth in enumerate(head.extra, 2):
        narrow, wide = f"{last}_1_Conv2d_{level}_1x1_{depth // 2}", f"{last}_2_Conv2d_{level}_3x3_s2_{depth}"
        for scope, stride in ((narrow, 1), (f"{wide}_depthwise", 2), (wide, 1)):
            x = tf.nn.relu6(convolved(scope, "", "", x, stride))
            yield scope, x
        maps.append(x)
    for level, given in enumerate(maps):
        for name in ("BoxEncodingPredictor", "ClassPredictor"):
            scope = f"BoxPredictor_{level}/{name}"
            x = tf.nn.relu6(convolved(f"{ROOT}{scope}_depthwise", "", "", given))
            yield f"{scope}_depthwise", x
            weights, bias = pair(f"{ROOT}{scope}", "")
            yield scope, tf.nn.conv2d(x, weights, 1, "SAME") + bias
