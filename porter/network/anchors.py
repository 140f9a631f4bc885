"""A detector's anchors, and the boxes that its encodings mean (object_detection: ssd_anchor_generator, box coder)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from porter.network.network import Network
from porter.network.spec import Anchors

if TYPE_CHECKING:
    import numpy as np

LOWEST_SCALE = 0.1  # of the one square box that the first map has besides its two others
LOWEST_RATIOS = (2.0, 0.5)


def map_sizes(network: Network, height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of each map that boxes are predicted from, for images of ``height`` x ``width``."""
    assert network.detection is not None
    first = network.detection.first
    number = int(first.removeprefix("layer_").partition("/")[0]) - 2
    sides, found = (height, width), []

    def shrink(stride: int) -> None:
        nonlocal sides
        sides = -(-sides[0] // stride), -(-sides[1] // stride)

    shrink(network.stem_stride)
    for index, block in enumerate(network.blocks):
        if index == number and first.endswith("expansion_output"):
            found.append(sides)
        shrink(block.stride)
        if index == number and not found:
            found.append(sides)
    found.append(sides)
    for _ in network.detection.extra:
        shrink(2)
        found.append(sides)
    return found


def anchors(network: Network, height: int, width: int) -> np.ndarray:
    """(boxes, 4) float32: centre y, x, height and width over the image's sides, in the order of the predictions."""
    import numpy as np

    assert network.detection is not None
    spec, sizes = network.detection.anchors, map_sizes(network, height, width)
    found = []
    for shapes, (rows, columns) in zip(_shapes(spec, len(sizes)), sizes, strict=True):
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        boxes = np.empty((rows, columns, len(shapes), 4))
        boxes[..., 0], boxes[..., 1] = y[..., None], x[..., None]
        for index, (scale, ratio) in enumerate(shapes):
            boxes[:, :, index, 2:] = scale / math.sqrt(ratio), scale * math.sqrt(ratio)
        found.append(boxes.reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def _shapes(spec: Anchors, levels: int) -> list[list[tuple[float, float]]]:
    """Scale and ratio of width to height of each map's boxes."""
    step = (spec.max_scale - spec.min_scale) / max(1, levels - 1)
    scales = [*(spec.min_scale + step * level for level in range(levels)), 1.0]
    found = [[(LOWEST_SCALE, 1.0), *((scales[0], ratio) for ratio in LOWEST_RATIOS)]]
    for scale, larger in itertools.pairwise(scales[1:]):
        found.append([*((scale, ratio) for ratio in spec.ratios), (math.sqrt(scale * larger), 1.0)])
    return found


def decoded(encodings: np.ndarray, of: np.ndarray, coder: Sequence[float]) -> np.ndarray:
    """(N, boxes, 4) encodings of the anchors ``of`` -> their top, left, bottom and right, over the image's sides."""
    import numpy as np

    y, x, height, width = np.moveaxis(encodings / np.asarray(coder, encodings.dtype), -1, 0)
    at_y, at_x, tall, wide = np.moveaxis(of.astype(encodings.dtype), -1, 0)
    middle_y, middle_x = y * tall + at_y, x * wide + at_x
    half_y, half_x = np.exp(height) * tall / 2, np.exp(width) * wide / 2
    return np.stack([middle_y - half_y, middle_x - half_x, middle_y + half_y, middle_x + half_x], -1)
