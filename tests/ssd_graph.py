"""The SSDLite detectors of object_detection, written once more with ``tf.nn`` from variables under the original names.

It shares no table with the port, and no arithmetic: every number of channels stands here as a number, not as an
expansion or a multiplier. The facts are those of research/slim/nets/mobilenet/mobilenet_v3.py (V3_LARGE, V3_SMALL,
their minimalistic forms, V3_EDGETPU, and what ``_reduce_consecutive_layers`` makes of them for detection), of
research/object_detection/models/ssd_mobilenet_v3_feature_extractor.py, ssd_mobilenet_edgetpu_feature_extractor.py and
feature_map_generators.py, and of the sample pipelines. The minimalistic detectors are those of the fork
NobuoTsukamoto/models. tests/test_ssd_graph.py holds the small one against what the original code computed.
"""

from typing import NamedTuple

import numpy as np

EPSILON = 1e-3  # of every batch norm
GATE = 0.16667
BOXES = (3, 6, 6, 6, 6, 6)  # of each position, map by map
EXTRA = (512, 256, 256, 128)  # channels of the maps behind those of the backbone


class Row(NamedTuple):
    """A block: kernel, channels within, channels out, stride, width of squeeze-excite, h-swish?, fused?, added?"""

    kernel: int
    inner: int
    out: int
    stride: int = 1
    squeeze: int = 0
    swish: bool = False
    fused: bool = False
    added: bool = True


class Detector(NamedTuple):
    """Stem, blocks and last convolution of a backbone (0: none), and where the detector takes its first map."""

    scope: str
    stem: int
    rows: tuple[Row, ...]
    last: int
    swish: bool  # at both ends
    first: str


LARGE = Detector(
    scope="FeatureExtractor/MobilenetV3",
    stem=16,
    rows=(
        Row(3, 16, 16),
        Row(3, 64, 24, 2),
        Row(3, 72, 24),
        Row(5, 72, 40, 2, squeeze=24),
        Row(5, 120, 40, squeeze=32),
        Row(5, 120, 40, squeeze=32),
        Row(3, 240, 80, 2, swish=True),
        Row(3, 200, 80, swish=True),
        Row(3, 184, 80, swish=True),
        Row(3, 184, 80, swish=True),
        Row(3, 480, 112, squeeze=120, swish=True),
        Row(3, 672, 112, squeeze=168, swish=True),
        # The outputs from here on are half of the classifier's, and the next blocks' inputs with them
        Row(5, 672, 80, 2, squeeze=168, swish=True),
        Row(5, 480, 80, squeeze=120, swish=True),
        Row(5, 480, 80, squeeze=120, swish=True),
    ),
    last=480,
    swish=True,
    first="layer_14/expansion_output",
)

SMALL = Detector(
    scope="FeatureExtractor/MobilenetV3",
    stem=16,
    rows=(
        Row(3, 16, 16, 2, squeeze=8),
        Row(3, 72, 24, 2),
        Row(3, 88, 24),
        Row(5, 96, 40, 2, squeeze=24, swish=True),
        Row(5, 240, 40, squeeze=64, swish=True),
        Row(5, 240, 40, squeeze=64, swish=True),
        Row(5, 120, 48, squeeze=32, swish=True),
        Row(5, 144, 48, squeeze=40, swish=True),
        # As above: half
        Row(5, 288, 48, 2, squeeze=72, swish=True),
        Row(5, 288, 48, squeeze=72, swish=True),
        Row(5, 288, 48, squeeze=72, swish=True),
    ),
    last=288,
    swish=True,
    first="layer_10/expansion_output",
)


def minimalistic(detector: Detector) -> Detector:
    """Neither squeeze-excite nor h-swish, and kernels of 3 x 3."""
    rows = tuple(row._replace(kernel=3, squeeze=0, swish=False) for row in detector.rows)
    return detector._replace(rows=rows, swish=False)


EDGETPU = Detector(
    scope="FeatureExtractor/MobilenetEdgeTPU",
    stem=32,
    rows=(
        Row(3, 32, 16, fused=True),  # nothing to expand: the projection alone
        Row(3, 128, 32, 2, fused=True),
        *[Row(3, 128, 32, fused=True)] * 3,
        Row(3, 256, 48, 2, fused=True),
        *[Row(3, 192, 48, fused=True)] * 3,
        Row(3, 384, 96, 2),
        *[Row(3, 384, 96)] * 3,
        Row(3, 768, 96, added=False),
        *[Row(3, 384, 96)] * 3,
        Row(5, 768, 160, 2),
        *[Row(5, 640, 160)] * 3,
        Row(3, 1280, 192),
    ),
    last=0,  # the second map is that of layer_23, the last block
    swish=False,
    first="layer_18/expansion_output",
)

DETECTORS = {
    "ssdlite_large": LARGE,
    "ssdlite_large_minimal": minimalistic(LARGE),
    "ssdlite_small": SMALL,
    "ssdlite_small_minimal": minimalistic(SMALL),
    "ssdlite_edgetpu": EDGETPU,
}


class Made(dict):
    """Variables that come into being, at random, when they are asked for."""

    def __init__(self, seed=0):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def ask(self, name, shape):
        if name not in self:
            kind = name.rpartition("/")[2]
            if kind in ("gamma", "moving_variance"):
                values = self.random.uniform(0.5, 1.5, shape)
            elif len(shape) == 1:
                values = self.random.normal(0, 0.2, shape)
            else:
                inputs = np.prod(shape[:2] if kind == "depthwise_weights" else shape[:3])
                values = self.random.normal(0, np.sqrt(2 / inputs), shape)
            self[name] = values.astype(np.float32)
        return self[name]


class Given:
    """Variables of a checkpoint; all of them are asked for, in the shapes that they have."""

    def __init__(self, values):
        self.values, self.asked = values, set()

    def ask(self, name, shape):
        self.asked.add(name)
        assert self.values[name].shape == shape, name
        return self.values[name]


def detect(tf, detector, variables, images, classes):
    """(N, H, W, 3) float64 -> endpoints by name, with encodings (N, boxes, 4) and logits (N, boxes, classes).

    ``variables`` are ``Made`` or ``Given``; they are float32, the arithmetic is float64.
    """
    x, scope = tf.constant(images, tf.float64), detector.scope
    found = {}

    def value(name, *shape):
        return tf.constant(variables.ask(name, shape).astype(np.float64))

    def normed(at, x):
        mean, variance, gamma, beta = (
            value(f"{at}/BatchNorm/{name}", x.shape[-1]) for name in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) / tf.sqrt(variance + EPSILON) * gamma + beta

    def conv(at, x, out, kernel=1, stride=1):
        return tf.nn.conv2d(x, value(f"{at}/weights", kernel, kernel, x.shape[-1], out), stride, "SAME")

    def depthwise(at, x, kernel, stride=1):
        weights = value(f"{at}/depthwise_weights", kernel, kernel, x.shape[-1], 1)
        return tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME")

    def biased(at, x, out):
        return conv(at, x, out) + value(f"{at}/biases", out)

    def act(swish, x):
        return x * tf.nn.relu6(x + 3) / 6 if swish else tf.nn.relu(x)

    x = act(detector.swish, normed(f"{scope}/Conv", conv(f"{scope}/Conv", x, detector.stem, 3, 2)))
    for index, row in enumerate(detector.rows):
        at, layer = f"{scope}/expanded_conv" + (f"_{index}" if index else ""), f"layer_{index + 2}"
        before = x
        if row.inner > x.shape[-1]:
            kernel, stride = (row.kernel, row.stride) if row.fused else (1, 1)
            x = act(row.swish, normed(f"{at}/expand", conv(f"{at}/expand", x, row.inner, kernel, stride)))
            found[f"{layer}/expansion_output"] = x
        if not row.fused:
            x = act(row.swish, normed(f"{at}/depthwise", depthwise(f"{at}/depthwise", x, row.kernel, row.stride)))
        if row.squeeze:
            mean = tf.reduce_mean(x, [1, 2], keepdims=True)
            hidden = tf.nn.relu(biased(f"{at}/squeeze_excite/Conv", mean, row.squeeze))
            x = x * (tf.nn.relu6(biased(f"{at}/squeeze_excite/Conv_1", hidden, row.inner) + 3) * GATE)
        x = normed(f"{at}/project", conv(f"{at}/project", x, row.out))
        if row.added and row.stride == 1 and before.shape[-1] == row.out:
            x = x + before
        found[layer] = x
    if detector.last:
        layer = f"layer_{len(detector.rows) + 2}"
        x = found[layer] = act(detector.swish, normed(f"{scope}/Conv_1", conv(f"{scope}/Conv_1", x, detector.last)))
    maps = [found[detector.first], x]
    for level, depth in enumerate(EXTRA, 2):
        narrow = f"{scope}/{layer}_1_Conv2d_{level}_1x1_{depth // 2}"
        wide = f"{scope}/{layer}_2_Conv2d_{level}_3x3_s2_{depth}"
        x = tf.nn.relu6(normed(narrow, conv(narrow, x, depth // 2)))
        x = tf.nn.relu6(normed(f"{wide}_depthwise", depthwise(f"{wide}_depthwise", x, 3, 2)))
        x = tf.nn.relu6(normed(wide, conv(wide, x, depth)))
        maps.append(x)
    predictions = {"BoxEncodingPredictor": [], "ClassPredictor": []}
    for level, (map_, boxes) in enumerate(zip(maps, BOXES, strict=True)):
        for name, values in (("BoxEncodingPredictor", 4), ("ClassPredictor", classes)):
            at = f"BoxPredictor_{level}/{name}"
            x = tf.nn.relu6(normed(f"{at}_depthwise", depthwise(f"{at}_depthwise", map_, 3)))
            x = biased(at, x, boxes * values)
            predictions[name].append(tf.reshape(x, [x.shape[0], -1, values]))
    encodings, logits = (tf.concat(predictions[name], 1).numpy() for name in predictions)
    return {name: map_.numpy() for name, map_ in found.items()}, encodings, logits
