"""What a detector finds in images: boxes with classes and scores, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from porter.errors import ArtifactError
from porter.models.create import OpenedModel
from porter.network.anchors import anchors, decoded
from porter.photos.images import resized
from porter.prediction.masks import palette
from porter.prediction.network import on_one_image
from porter.text import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

# Of ssdlite_mobilenet_v3_*_320x320_coco.config
SCORE_THRESHOLD, IOU_THRESHOLD, MOST_BOXES = 1e-8, 0.6, 100
LONGEST_NAME = 60  # characters of a class's name that are drawn


class Box(NamedTuple):
    """Top, left, bottom and right over the image's sides, the class (0 is the background's) and its score."""

    top: float
    left: float
    bottom: float
    right: float
    number: int
    score: float


def detector(source: str, opened: OpenedModel, device: str = "cpu") -> Callable[[Image], list[Box]]:
    """A function: a photo -> what the detector ``opened`` finds in it, highest scores first.

    Photos are resized as TensorFlow 1 does, to the size that the detector was trained at. Raises PorterError; the
    function raises it for outputs that are NaN.
    """
    network, size = opened.whole.network, opened.mapping.input.size
    coder = network.detection.coder if network.detection else []
    of, run = anchors(network, size, size), on_one_image(source, opened, device)

    def detect(photo: Image) -> list[Box]:
        encodings, logits = run(resized(photo, (size, size), 1.0, "tf"))
        [boxes] = decoded(encodings[None].cpu().numpy(), of, coder)
        return suppressed(boxes, logits[..., 1:].sigmoid().cpu().numpy())

    return detect


def suppressed(boxes: np.ndarray, scores: np.ndarray) -> list[Box]:
    """The best of (boxes, 4), whose ``scores`` (boxes, classes) leave the background out: at most 100 of each class.

    Of boxes of one class that overlap by more than 0.6, the one with the highest score is kept; of those of all
    classes, the 100 highest, cut off at the image's edge. Raises ArtifactError where ONNX Runtime is missing.
    """
    kept = _session().run(
        None,
        {
            "boxes": boxes[None].astype(np.float32),
            "scores": np.ascontiguousarray(scores.T)[None].astype(np.float32),
        },
    )[0]
    found = [(float(scores[box, number]), int(number), int(box)) for _, number, box in kept]
    found.sort(key=lambda one: -one[0])
    cut = np.clip(boxes, 0.0, 1.0)
    best = []
    for score, number, box in found[:MOST_BOXES]:
        top, left, bottom, right = cut[box].tolist()
        best.append(Box(top, left, bottom, right, number + 1, score))
    return best


@cache
def _session() -> Any:
    """ONNX Runtime with one operation: NonMaxSuppression, class by class."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ArtifactError(f"boxes need pip install 'mnv3-port[onnx]' ({error})") from error
    limits: dict[str, np.ndarray] = {
        "most": np.array([MOST_BOXES], np.int64),
        "iou": np.array([IOU_THRESHOLD], np.float32),
        "score": np.array([SCORE_THRESHOLD], np.float32),
    }
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["kept"])
    graph = helper.make_graph(
        [node],
        "suppression",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "boxes", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "classes", "boxes"]),
        ],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["found", 3])],
        [numpy_helper.from_array(values, name) for name, values in limits.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def drawn(image: Image, boxes: Sequence[Box], names: Sequence[str]) -> Image:
    """A copy of ``image``, RGB of any size, with ``boxes`` on it; a class has a colour, and its name or number."""
    from PIL import ImageDraw

    picture = image.copy()
    draw, colours = ImageDraw.Draw(picture), palette()
    width, height = picture.size
    line = max(1, round(max(picture.size) / 300))
    for box in reversed(boxes):  # the best on top
        colour = tuple(colours[box.number % len(colours)].tolist())
        left, top = min(box.left * width, width - 1), min(box.top * height, height - 1)
        right, bottom = min(box.right * width, width - 1), min(box.bottom * height, height - 1)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        # A name comes from a file: of one line, and not as long as it likes
        label = f"{shortened(names[box.number], LONGEST_NAME) or box.number} {box.score:.0%}"
        draw.text((left + 2 * line, top + line), label, fill=colour)
    return picture
