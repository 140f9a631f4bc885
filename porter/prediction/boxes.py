"""What a detector finds in images: boxes with classes and scores, drawn, and how good they are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from porter.errors import ArtifactError, PorterError
from porter.mapping.options import PortOptions
from porter.models.create import open_model
from porter.models.devices import chosen_device
from porter.models.ssdlite import SSDLite
from porter.network.anchors import anchors, decoded
from porter.photos.images import Photo, normalized, read_image, resized
from porter.port import DEFAULT
from porter.prediction.masks import palette

if TYPE_CHECKING:
    from PIL.Image import Image

# Of ssdlite_mobilenet_v3_*_320x320_coco.config
SCORE_THRESHOLD, IOU_THRESHOLD, MOST_BOXES = 1e-8, 0.6, 100


class Box(NamedTuple):
    """Top, left, bottom and right over the image's sides, the class (0 is the background's) and its score."""

    top: float
    left: float
    bottom: float
    right: float
    number: int
    score: float


def detect(
    source: str, images: Iterable[Photo], options: PortOptions = DEFAULT, device: str = "cpu", least: float = 0.0
) -> Iterator[tuple[Photo, list[Box]]]:
    """Each image, and what the detector ``source`` finds in it, highest scores first, from ``least`` on.

    Images are resized as TensorFlow 1 does, to the size that the detector was trained at. Raises PorterError.
    """
    opened = open_model(source, options)
    model, spec = opened.model, opened.mapping.input
    if not isinstance(model, SSDLite):
        raise PorterError(f"{source}: a {opened.mapping.variant} port is no detector; it finds no boxes")
    coder = model.network.detection.coder if model.network.detection else []
    of = anchors(model.network, spec.size, spec.size)
    model.to(chosen_device(device))
    for image in images:
        pixels = resized(read_image(image), (spec.size, spec.size), 1.0, "tf")
        inputs = torch.from_numpy(normalized(pixels, spec.mean, spec.std)).permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            encodings, logits = model(inputs.to(device))
            scores = logits[..., 1:].sigmoid().cpu().numpy()
        [boxes] = decoded(encodings.cpu().numpy(), of, coder)
        yield image, [box for box in suppressed(boxes, scores[0]) if box.score >= least]


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


def drawn(image: Image, boxes: Sequence[Box], names: Sequence[str] = ()) -> bytes:
    """``image`` with ``boxes`` on it, as a PNG; a class has a colour."""
    from PIL import ImageDraw

    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    colours = np.frombuffer(palette(), np.uint8).reshape(-1, 3)
    line = max(1, round(max(picture.size) / 300))
    for box in reversed(boxes):  # the best on top
        red, green, blue = colours[box.number % len(colours)].tolist()
        width, height = picture.size
        corners = (box.left * width, box.top * height, box.right * width, box.bottom * height)
        draw.rectangle(corners, outline=(red, green, blue), width=line)
        draw.text(
            (corners[0] + 2 * line, corners[1] + line),
            f"{name_of(box, names)} {box.score:.0%}",
            fill=(red, green, blue),
        )
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def name_of(box: Box, names: Sequence[str]) -> str:
    """The class's name, or its number."""
    return names[box.number] if box.number < len(names) else str(box.number)


class Precision(NamedTuple):
    """COCO's mean average precision: over overlaps from 0.5 to 0.95, at 0.5, and at 0.75; and of how many images."""

    mean: float
    at_50: float
    at_75: float
    images: int


def average_precision(
    source: str, data: Path, annotations: Path, options: PortOptions = DEFAULT, device: str = "cpu"
) -> Precision:
    """Mean average precision on the images of ``data`` that ``annotations`` (COCO's JSON) tells the boxes of.

    Class numbers are COCO's category ids. Raises PorterError on a file that is no such JSON, or a missing image.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ArtifactError(f"mean average precision needs pip install 'mnv3-port[coco]' ({error})") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        try:
            truth = COCO(str(annotations))
            listed = [
                (one["id"], data / one["file_name"], one["height"], one["width"]) for one in truth.dataset["images"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            raise PorterError(f"{annotations}: not COCO's JSON of boxes ({type(error).__name__}: {error})") from error
        for _, path, _, _ in listed:
            if not path.resolve().is_relative_to(data.resolve()) or not path.is_file():
                raise PorterError(f"{path}: no such image in {data}; {annotations} tells its boxes")
        found = []
        for (number, _, height, width), (_, boxes) in zip(
            listed, detect(source, [path for _, path, _, _ in listed], options, device), strict=True
        ):
            found += [_as_coco(number, box, height, width) for box in boxes]
        if not found:
            return Precision(0.0, 0.0, 0.0, len(listed))
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    mean, at_50, at_75 = evaluation.stats[:3].tolist()
    return Precision(mean, at_50, at_75, len(listed))


def _as_coco(image: int, box: Box, height: int, width: int) -> dict[str, Any]:
    corner = [box.left * width, box.top * height]
    sides = [(box.right - box.left) * width, (box.bottom - box.top) * height]
    return {"image_id": image, "category_id": box.number, "bbox": corner + sides, "score": box.score}
