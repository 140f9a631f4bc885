"""How good a detector's boxes are: COCO's average precision."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from porter.errors import ArtifactError, Option, PorterError
from porter.evaluation.result import Scores
from porter.evaluation.run import Progress, Settings, device_of_one_process
from porter.models.create import OpenedModel
from porter.photos.images import read_images
from porter.prediction.boxes import Box, detector
from porter.prediction.network import labels_of

# The largest file that COCO has, instances_train2017.json, has 470 MB
MAX_FILE = 512 << 20  # bytes
AT_75 = 5  # which of the ten overlaps, 0.5, 0.55, ... 0.95, is 0.75

Number = Annotated[int, Meta(ge=0, lt=1 << 53)]  # an id: JSON's readers agree on these
Side = Annotated[int, Meta(ge=1, lt=1 << 31)]  # pixels
Length = Annotated[float, Meta(ge=0)]


class CocoImage(Struct):
    """``file_name`` is a path below the folder of images."""

    id: Number
    file_name: str
    height: Side
    width: Side


class CocoBox(Struct):
    """``bbox``: left, top, width and height in pixels. ``area``, of the object's outline, is the box's when missing."""

    image_id: Number
    category_id: Number
    bbox: tuple[float, float, Length, Length]
    area: Length | None = None
    iscrowd: Literal[0, 1] = 0


class CocoCategory(Struct):
    """A class; ``id`` is its number."""

    id: Number
    name: str = ""


class Coco(Struct):
    """The parts of COCO's JSON of boxes that are read; the rest of the file is ignored."""

    images: list[CocoImage]
    annotations: list[CocoBox]
    categories: list[CocoCategory]


def average_precision(opened: OpenedModel, data: Path, settings: Settings, progress: Progress | None) -> Scores:
    """Average precision of the detector ``opened`` on the photos of ``data`` whose boxes ``settings.labels`` lists.

    That is COCO's JSON. Class numbers are its category ids, from 1 on. Raises PorterError on a file that is no such
    JSON, or a missing image.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ArtifactError(f"average precision needs pip install 'mnv3-port[coco]' ({error})") from error
    file = settings.labels
    if file is None or file.is_dir():
        raise PorterError(
            f"{opened.given}: a detector needs COCO's JSON of the images' boxes; use", option=Option("labels", "JSON")
        )
    truth, classes = read_coco(file), opened.whole.num_classes
    for box in truth.annotations:
        if not 0 < box.category_id < classes:
            raise PorterError(f"{file}: class {box.category_id}; {opened.given} has the classes 1 to {classes - 1}")
    photos = {_image_path(data, image, file): image for image in truth.images}
    if len(photos) < len(truth.images):
        raise PorterError(f"{file}: lists an image twice")
    # One of pycocotools' loops goes over images times categories: those that no box can have are left out
    truth.categories = [category for category in truth.categories if 0 < category.id < classes]
    names = {category.id: category.name for category in truth.categories}
    names |= {number: label.names for number, label in enumerate(labels_of(opened, settings.class_names))}
    detect = detector(opened, device_of_one_process(settings.device))
    skipped: list[tuple[Path, PorterError]] = []
    found, seen = [], []
    for done, (photo, picture) in enumerate(read_images(photos, skipped if settings.skip_unreadable else None), 1):
        image = photos[photo]
        seen.append(image.id)
        found += [_as_coco(image, box) for box in detect(picture)]
        if progress:
            progress(done, len(photos))
    if not seen:
        raise PorterError(f"{data}: none of its {len(photos)} images could be read")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_indexed(truth, msgspec.to_builtins(truth.annotations)), _indexed(truth, found), "bbox")
        evaluation.params.imgIds = sorted(seen)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (overlaps, recalls, classes), any area, 100 boxes an image
    counted = [k for k in range(precision.shape[2]) if (precision[:, :, k] > -1).any()]
    if not counted:
        raise PorterError(f"{file}: no box that counts in the images that could be read")
    means = precision[:, :, counted].mean(1)  # (overlaps, classes): all recalls of a class count, or none
    figures = {"mAP": float(means.mean()), "AP50": float(means[0].mean()), "AP75": float(means[AT_75].mean())}
    numbers = [int(evaluation.params.catIds[k]) for k in counted]
    by_class = dict(zip(numbers, means.mean(0).tolist(), strict=True))
    return Scores(opened.given, len(seen), figures, "AP", by_class, names, [str(photo) for photo, _ in skipped])


def read_coco(file: Path) -> Coco:
    """The annotations in ``file``. Raises PorterError where it is no COCO JSON, or its parts do not fit each other."""
    try:
        if file.stat().st_size > MAX_FILE:
            raise PorterError(f"{file}: {file.stat().st_size} bytes; COCO's largest file of boxes has fewer")
        truth = msgspec.json.decode(file.read_bytes(), type=Coco)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PorterError(f"{file}: not COCO's JSON of boxes ({error})") from error
    images, categories = {one.id for one in truth.images}, {one.id for one in truth.categories}
    if len(images) < len(truth.images) or len(categories) < len(truth.categories):
        raise PorterError(f"{file}: two images or two categories have one id")
    if not images:
        raise PorterError(f"{file}: lists no images")
    for box in truth.annotations:
        if box.image_id not in images or box.category_id not in categories:
            where = f"image {box.image_id}, category {box.category_id}"
            raise PorterError(f"{file}: a box of {where}, which the file does not list")
    return truth


def _image_path(data: Path, image: CocoImage, file: Path) -> Path:
    path = data / image.file_name
    if "\0" in image.file_name or not path.resolve().is_relative_to(data.resolve()) or not path.is_file():
        raise PorterError(f"{path}: no such image in {data}; {file} lists its boxes")
    return path


def _as_coco(image: CocoImage, box: Box) -> dict[str, Any]:
    corner = [box.left * image.width, box.top * image.height]
    sides = [(box.right - box.left) * image.width, (box.bottom - box.top) * image.height]
    return {"image_id": image.id, "category_id": box.number, "bbox": corner + sides, "iscrowd": 0, "score": box.score}


def _indexed(truth: Coco, boxes: list[dict[str, Any]]) -> Any:
    """``boxes`` as pycocotools takes them. Ids are from 1 on: it takes a match with box 0 for none."""
    from pycocotools.coco import COCO

    for number, box in enumerate(boxes, 1):
        box |= {"id": number, "bbox": list(box["bbox"])}
        if box.get("area") is None:
            box["area"] = box["bbox"][2] * box["bbox"][3]
    coco = COCO()
    coco.dataset = msgspec.to_builtins(truth) | {"annotations": boxes}
    coco.createIndex()
    return coco
