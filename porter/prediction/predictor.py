"""``predict``: what a port finds in photos, whatever its kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from porter.errors import ArtifactError
from porter.mapping.options import DEFAULT_OPTIONS, PathLike, PortOptions
from porter.models.build import probabilities
from porter.models.create import OpenedModel, open_model
from porter.photos.images import Preprocessing, expand, read_images, resized
from porter.photos.labels import Label
from porter.prediction.boxes import detector, drawn
from porter.prediction.masks import mask_image, overlaid, segmenter, shares
from porter.prediction.network import labels_of, on_one_image, palette
from porter.sources.weights import Weights

if TYPE_CHECKING:
    from PIL.Image import Image


class Row(NamedTuple):
    """A class that was found: its probability, share of the pixels or score, from 0 to 1; its number and name.

    ``detail`` is its WordNet id, or where its box lies in pixels. ``colour`` is that of masks and boxes, ``#rrggbb``.
    """

    value: float
    number: int
    name: str
    detail: str = ""
    colour: str = ""


class Prediction(NamedTuple):
    """What was found in a photo: ``rows``, the most likely first, and ``values``, the same for JSON.

    ``picture`` shows it on the photo at any size. ``mask`` is a segmenter's, with a palette.
    """

    rows: list[Row]
    values: dict[str, Any]
    picture: Callable[[Image], Image]
    mask: Image | None = None


class Predictor(NamedTuple):
    """A port that was opened once. ``find`` takes a decoded photo, RGB.

    ``ignored`` are options of ``open_predictor`` that this kind has no use for, ``endings`` those of the files that are
    made of a photo.
    """

    kind: str
    find: Callable[[Image], Prediction]
    ignored: tuple[str, ...]
    endings: tuple[str, ...] = ()


def predict(
    source: PathLike,
    images: PathLike | Sequence[PathLike],
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    fake_quant: bool | None = None,
    device: str = "cpu",
    class_names: Sequence[str] = (),
    top: int = 5,
    preprocess: Preprocessing = "card",
    least: float = 0.3,
) -> Iterator[tuple[Path, Prediction]]:
    """What a port finds in photos: classes, a mask or boxes.

    Args:
        source: An artifact, a release's folder or a checkpoint: a classifier, a segmenter or a detector.
        images: A photo, a folder, a pattern such as ``*.jpg``, or several of these.
        variant: As for ``convert``.
        mapping: As for ``convert``.
        weights: As for ``convert``.
        fake_quant: False computes a source that was trained for 8 bits in float.
        device: ``cpu``, ``cuda``, ``mps``.
        class_names: The classes' own names, in order. By default those in the artifact, or ImageNet's.
        top: How many classes a classifier gives.
        preprocess: For a classifier: ``card`` as timm does, ``tf`` as slim did, ``tf2`` as ``tf.image.resize``.
        least: For a detector: the lowest score.

    Returns:
        An iterator over (file, prediction), one photo in memory at a time. A prediction has ``rows`` (of a value from 0
        to 1, a class's number and name), ``values`` (the same for JSON), ``mask`` (a segmenter's image, else None) and
        ``picture``, a function that shows it on the photo.

    Raises:
        PorterError: On bad input; for a photo that cannot be read, when its turn comes.

    Example:
        >>> [(file, found)] = porter.predict(source, photos)
        >>> len(found.rows)
        5
    """
    options = PortOptions(variant, mapping, weights, fake_quant=fake_quant)
    given = [images] if isinstance(images, (str, os.PathLike)) else images
    predictor = open_predictor(
        os.fspath(source), options, device, class_names, top=top, preprocess=preprocess, least=least
    )
    photos = expand([os.fspath(one) for one in given])
    return ((photo, predictor.find(image)) for photo, image in read_images(photos))


def open_predictor(
    source: str,
    options: PortOptions = DEFAULT_OPTIONS,
    device: str = "cpu",
    class_names: Sequence[str] = (),
    *,
    top: int = 5,
    preprocess: Preprocessing = "card",
    least: float = 0.3,
) -> Predictor:
    """Open ``source``, an artifact or any checkpoint: a classifier, a segmenter or a detector.

    ``class_names`` are by default those in the artifact, or ImageNet's. A classifier gives its ``top`` classes, for
    photos made ready by ``preprocess`` (``resized``); a detector the boxes whose scores are ``least`` or more. Raises
    PorterError.
    """
    opened = open_model(source, options)
    kind, classes = opened.whole.network.kind, opened.whole.num_classes
    if not classes:
        raise ArtifactError(f"{source}: a feature extractor, without classes to predict")
    labels = labels_of(opened, class_names)
    if kind == "classifier":
        find = _classifier(opened, device, labels, min(top, classes), preprocess)
        return Predictor(kind, find, ("output", "least"))
    shown = [label.names for label in labels] or [""] * classes
    if kind == "segmenter":
        find = _segmenter(opened, device, shown)
        return Predictor(kind, find, ("top", "preprocess", "least"), endings=(".png",))
    find = _detector(opened, device, shown, least)
    return Predictor(kind, find, ("top", "preprocess"), endings=(".png", ".json"))


def _classifier(
    opened: OpenedModel, device: str, labels: list[Label], top: int, preprocess: Preprocessing
) -> Callable[[Image], Prediction]:
    run, spec = on_one_image(opened, device), opened.mapping.input

    def find(photo: Image) -> Prediction:
        [logits] = run(resized(photo, spec.sides, spec.crop, preprocess))
        best = probabilities(opened.whole.network, logits).topk(top)
        rows, values = [], []
        for number, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            label = labels[number] if labels else None
            rows.append(Row(chance, number, label.names if label else "", label.wordnet if label else ""))
            values.append({"number": number, "label": label and label._asdict(), "probability": chance})
        return Prediction(rows, {"classes": values}, lambda small: small)

    return find


def _segmenter(opened: OpenedModel, device: str, names: Sequence[str]) -> Callable[[Image], Prediction]:
    segment, colours = segmenter(opened, device), _colours()

    def find(photo: Image) -> Prediction:
        labels = segment(photo)
        rows = [Row(share, number, names[number], colour=colours[number]) for number, share in shares(labels)]
        values = [{"number": row.number, "name": row.name, "share": row.value} for row in rows]
        return Prediction(rows, {"classes": values}, lambda small: overlaid(small, labels), mask_image(labels))

    return find


def _detector(opened: OpenedModel, device: str, names: Sequence[str], least: float) -> Callable[[Image], Prediction]:
    detect, colours = detector(opened, device), _colours()

    def find(photo: Image) -> Prediction:
        best = [box for box in detect(photo) if box.score >= least]
        rows = []
        for box in best:
            left, right = (round(side * photo.width) for side in (box.left, box.right))
            top, bottom = (round(side * photo.height) for side in (box.top, box.bottom))
            place = f"{f'{left},{top} to {right},{bottom}':<23}"
            rows.append(Row(box.score, box.number, names[box.number], place, colours[box.number % len(colours)]))
        values = [box._asdict() | {"name": names[box.number]} for box in best]
        return Prediction(rows, {"boxes": values}, lambda small: drawn(small, best, names))

    return find


def _colours() -> list[str]:
    return [f"#{bytes(colour).hex()}" for colour in palette()]
