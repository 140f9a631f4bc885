"""How often a segmenter is right: intersection over union on photos whose pixels are labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from porter.errors import Option, PorterError
from porter.evaluation.result import Scores
from porter.evaluation.run import Progress, Settings, device_of_one_process
from porter.models.create import OpenedModel
from porter.photos.images import find_photos, read_images
from porter.prediction.masks import segmenter
from porter.prediction.network import labels_of

IGNORED = 255  # the label of pixels that do not count, in Cityscapes and in PASCAL VOC


def compare_masks(opened: OpenedModel, data: Path, settings: Settings, progress: Progress | None) -> Scores:
    """Mean intersection over union of the segmenter ``opened`` on the photos of ``data``, and pixel accuracy.

    Labels are in the folder ``settings.labels`` under the photos' names: PNGs of class numbers, 8 bits or with a
    palette; 255 does not count. Raises PorterError naming a photo without label, or a label that does not fit.
    """
    photos, masks = find_photos(data), settings.labels
    if masks is None or not masks.is_dir():
        what = "a segmenter needs the folder of masks, PNGs under the images' names"
        raise PorterError(f"{opened.given}: {what}; use", option=Option("labels", "FOLDER"))
    labels = {photo: masks / photo.relative_to(data).with_suffix(".png") for photo in photos}
    for path in labels.values():
        if not path.is_file():
            raise PorterError(f"{path}: no such label; each image has one of its name, ending in .png")
    classes = opened.whole.num_classes
    names = {number: label.names for number, label in enumerate(labels_of(opened, settings.class_names))}
    segment = segmenter(opened, device_of_one_process(settings.device))
    confusion = np.zeros((classes, classes), np.int64)
    skipped: list[tuple[Path, PorterError]] = []
    for done, (photo, image) in enumerate(read_images(photos, skipped if settings.skip_unreadable else None), 1):
        wanted = _read_labels(labels[photo], image.size)
        counts = wanted != IGNORED
        if wanted[counts].max(initial=0) >= classes:
            raise PorterError(f"{labels[photo]}: class {wanted[counts].max()}; {opened.given} has {classes} classes")
        pairs = wanted[counts].astype(np.int64) * classes + segment(image)[counts]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
        if progress:
            progress(done, len(photos))
    if not confusion.any():
        raise PorterError(f"{data}: no labelled pixel in any image that could be read")
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    ious = {number: float(hits[number] / union[number]) for number in np.nonzero(union)[0].tolist()}
    figures = {"mean IoU": float(np.mean(list(ious.values()))), "pixel accuracy": float(hits.sum() / confusion.sum())}
    unread = [str(photo) for photo, _ in skipped]
    return Scores(opened.given, len(photos) - len(unread), figures, "IoU", ious, names, unread)


def _read_labels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 class numbers, for an image of ``size`` (width, height): nothing else is decoded."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.mode not in ("L", "P"):
                what = f"a label has one number for each pixel (8 bits or a palette), not {opened.mode}"
                raise PorterError(f"{path}: {what}")
            if opened.size != size:
                width, height = opened.size
                raise PorterError(f"{path}: {width} x {height} pixels; its image has {size[0]} x {size[1]}")
            return np.asarray(opened)
    except PorterError:
        raise
    except Exception as error:  # Pillow's decoders have every kind for damaged bytes
        raise PorterError(f"{path}: not a readable PNG ({error})") from error
