"""SSDLite, a detector's head (arXiv 1905.02244, section 6.3; object_detection's SSD feature extractors and box coder).

What a table says, the nodes, the anchors, and the boxes that encodings mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, Struct

from porter.network.node import Group, Map, Node, Size, map_sizes
from porter.network.spec import Count, Positive

if TYPE_CHECKING:
    import numpy as np

    from porter.sources.stored_graph import StoredGraph

MOST_LEVELS = 32  # maps and shapes of boxes; SSDLite has six of each
# ssd_anchor_generator.py: beside its square box, the first map has two others, all of this scale or the first one's
LOWEST_SCALE, LOWEST_RATIOS = 0.1, (2.0, 0.5)
FIRST_ANCHORS = 1 + len(LOWEST_RATIOS)


class Anchors(Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes of boxes: ``ratios`` (width to height) at scales from ``min_scale`` to ``max_scale`` of the image.

    Every map has one more box, a square of a size between its scale and the next; the first map has three boxes.
    """

    min_scale: Annotated[float, Meta(gt=0, le=1)]
    max_scale: Annotated[float, Meta(gt=0, le=1)]
    ratios: Annotated[list[Positive], Meta(min_length=1, max_length=MOST_LEVELS)]


class Detection(Struct, frozen=True, forbid_unknown_fields=True):
    """The head on the map of the endpoint ``first``, the last one, and further ones of ``extra`` channels.

    ``coder`` are the factors of encoded centres and sizes (y, x, height, width).
    """

    KEY: ClassVar[str] = "detection"  # of the head in a mapping file
    KIND: ClassVar[str] = "detector"
    UNIT: ClassVar[str] = "box"  # what gets a class
    ANY_SIZE: ClassVar[bool] = False  # of images
    TASK: ClassVar[str] = "Object Detection"
    TAG: ClassVar[str] = "object-detection"  # on Hugging Face
    SECTIONS: ClassVar[tuple[str, ...]] = ("extra", "predictor")
    CLASS_BIAS: ClassVar[str] = "classes.0.1.bias"
    VALUES_PER_CLASS: ClassVar[int] = FIRST_ANCHORS  # in that entry
    BACKGROUND_IS_A_CLASS: ClassVar[bool] = True
    GATED: ClassVar[bool] = False
    MODULE_OUTPUTS: ClassVar[int] = 2  # how many of ``outputs`` the module gives

    # Suppression as ssdlite_mobilenet_v3_*_320x320_coco.config has it: boxes of a class and of all, IoU, least score
    MOST_BOXES: ClassVar[int] = 100
    OVERLAP: ClassVar[float] = 0.6
    LEAST_SCORE: ClassVar[float] = 1e-8

    first: str
    extra: Annotated[list[Count], Meta(max_length=MOST_LEVELS)]
    anchors: Anchors
    coder: Annotated[list[Positive], Meta(min_length=4, max_length=4)]

    @property
    def inner(self) -> tuple[str, str]:
        """The key of the endpoint whose map the head takes beside the last one, and that endpoint."""
        return "detection.first", self.first

    def check(self) -> None:
        """Raise ValueError where the numbers contradict each other."""
        if self.anchors.min_scale > self.anchors.max_scale:
            raise ValueError("detection.anchors: min_scale is larger than max_scale")

    def as_in_graph(self, _graph: StoredGraph, _sources: Mapping[str, str]) -> Detection:
        """The head itself: none of its constants is read from a stored graph."""
        return self

    def by_endpoint(self, outputs: Sequence[np.ndarray], nodes: Sequence[Node], size: Size) -> dict[str, np.ndarray]:
        """``outputs`` for images of ``size`` as values of endpoints: the predictors' maps, flattened to rows."""
        sizes, by_name = map_sizes(nodes, *size), {node.name: node for node in nodes}
        found = {}
        for output, values in zip(self.outputs, outputs, strict=True):
            start = 0
            for rows in by_name[output].inputs:
                [endpoint] = by_name[rows].inputs
                count = math.prod(sizes[endpoint]) * by_name[endpoint].shape[0] // by_name[rows].values
                found[endpoint] = values[:, start : start + count]
                start += count
        return found

    def predictors(self, nodes: Sequence[Node]) -> dict[str, bool]:
        """The endpoints that outputs are made of, and whether each has values for each class."""
        by_name = {node.name: node for node in nodes}
        rows = {rows: output == "logits" for output in self.outputs for rows in by_name[output].inputs}
        return {by_name[name].inputs[0]: by_class for name, by_class in rows.items()}

    def made(self, values: Mapping[str, np.ndarray], nodes: Sequence[Node], size: Size) -> dict[str, np.ndarray]:
        """What is made of ``values`` (maps NHWC) of the predictors for images of ``size``: rows, boxes and scores."""
        import numpy as np

        by_name, sizes = {node.name: node for node in nodes}, map_sizes(nodes, *size)
        found: dict[str, np.ndarray] = {}
        for output in self.outputs:
            rows = [by_name[name] for name in by_name[output].inputs]
            maps = [(values[row.inputs[0]], row.values) for row in rows]
            found[output] = np.concatenate([one.reshape(len(one), -1, per_box) for one, per_box in maps], 1)
        of = anchors_on(self, [sizes[by_name[name].inputs[0]] for name in by_name["encodings"].inputs])
        scores = 1 / (1 + np.exp(-found["logits"]))
        return found | {"boxes": decoded(found["encodings"], of, self.coder), "scores": scores}

    @property
    def class_layers(self) -> list[str]:
        """The layers with outputs for each class."""
        return [f"classes.{level}.1" for level in range(len(self.extra) + 2)]

    @property
    def anchors_per_position(self) -> list[int]:
        """Anchors per position, for each feature map."""
        return [FIRST_ANCHORS] + [len(self.anchors.ratios) + 1] * (len(self.extra) + 1)

    def groups(self, last: Map, inner: Map, classes: int, epsilon: float) -> Iterator[Group]:
        """The nodes of the head. Outputs are ``encodings`` (N, boxes, 4) and ``logits`` (N, boxes, classes).

        ``classes`` count the background, which is class 0; ``epsilon`` is that of batch norms.
        """

        def unit(name: str, at: str, given: Map, out: int, kernel: int = 1, stride: int = 1) -> Node:
            """A convolution with batch norm and relu6; depthwise where its kernel is larger."""
            groups = out if kernel > 1 else 1
            shape = (out, given.channels // groups, kernel, kernel)
            node = Node(name, "convolution", (given.name,), (name,), f"{at}.2", f"{at}.0", shape, f"{at}.1")
            return node._replace(activation="relu6", stride=stride, groups=groups, epsilon=epsilon)

        maps, stem = [inner, last], last.endpoint
        for number, depth in enumerate(self.extra):
            at, half, level = f"extras.{number}", depth // 2, number + 2
            wide = f"{stem}_2_Conv2d_{level}_3x3_s2_{depth}"
            narrowed = unit(f"{stem}_1_Conv2d_{level}_1x1_{half}", f"{at}.0", maps[-1], half)
            halved = unit(f"{wide}_depthwise", f"{at}.1", _map(narrowed), half, kernel=3, stride=2)
            widened = unit(wide, f"{at}.2", _map(halved), depth)
            names = {"number": str(number), "narrow": narrowed.name, "wide": wide}
            # Placeholders of mapping files for version 0.1
            names |= {"last_layer": stem, "level": str(level), "half": str(half), "depth": str(depth)}
            yield Group("extra", names, [narrowed, halved, widened])
            maps.append(_map(widened))
        rows: dict[str, list[str]] = {"encodings": [], "logits": []}
        for level, (count, given) in enumerate(zip(self.anchors_per_position, maps, strict=True)):
            nodes: list[Node] = []
            for output, module, predictor, values in (
                ("encodings", "boxes", f"BoxPredictor_{level}/BoxEncodingPredictor", 4),
                ("logits", "classes", f"BoxPredictor_{level}/ClassPredictor", classes),
            ):
                at = f"{module}.{level}"
                depthwise = unit(f"{predictor}_depthwise", f"{at}.0", given, given.channels, kernel=3)
                shape = (count * values, given.channels, 1, 1)
                convolution = Node(
                    predictor, "convolution", (depthwise.name,), (predictor,), f"{at}.1", f"{at}.1", shape
                )
                nodes += [depthwise, convolution, Node(f"{at}/rows", "rows", (predictor,), values=values)]
                rows[output].append(f"{at}/rows")
            yield Group("predictor", {"level": str(level)}, nodes, above=2)  # scopes beside the feature extractor
        yield Group("", {}, [Node(output, "concat", tuple(found)) for output, found in rows.items()])

    @property
    def outputs(self) -> tuple[str, ...]:
        """The values that the network gives."""
        return "encodings", "logits"


def _map(node: Node) -> Map:
    return Map(node.name, node.name, node.shape[0])


def anchors_on(head: Detection, sizes: Sequence[Size]) -> np.ndarray:
    """(boxes, 4) float32: centre y, x, height and width over the image's sides, in the order of the predictions.

    ``sizes`` are those of the feature maps.
    """
    import numpy as np

    found = []
    for shapes, (rows, columns) in zip(_shapes(head.anchors, len(sizes)), sizes, strict=True):
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
