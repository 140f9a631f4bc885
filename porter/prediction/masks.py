"""What a segmenter makes of images: a class for every pixel, as masks; and how often it is right."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from porter.errors import PorterError
from porter.mapping.options import PortOptions
from porter.models.create import open_model
from porter.models.devices import chosen_device
from porter.models.lraspp import LRASPP
from porter.photos.images import Photo, find_photos, normalized, read_image
from porter.port import DEFAULT

LONGEST = 2049  # pixels of a side; Cityscapes is evaluated at 1025 x 2049. Larger images are made smaller
IGNORED = 255  # the label of pixels that do not count, in Cityscapes and in PASCAL VOC
MOST_CLASSES = 255  # that an 8-bit mask can tell


def segment(
    source: str, images: Iterable[Photo], options: PortOptions = DEFAULT, device: str = "cpu"
) -> Iterator[tuple[Photo, np.ndarray]]:
    """Each image, and the class of each of its pixels, (H, W) uint8, by the segmenter ``source``.

    An image whose longer side has more than ``LONGEST`` pixels is made smaller, and the mask larger again. Raises
    PorterError.
    """
    opened = open_model(source, options)
    model, spec = opened.model, opened.mapping.input
    if not isinstance(model, LRASPP):
        raise PorterError(f"{source}: a {opened.mapping.variant} port is no segmenter; it has no masks")
    if not 1 <= model.num_classes <= MOST_CLASSES:
        raise PorterError(f"{source}: {model.num_classes} classes; a mask tells from 1 to {MOST_CLASSES}")
    model.to(chosen_device(device))
    for image in images:
        photo = read_image(image)
        width, height = photo.size
        scale = min(1.0, LONGEST / max(width, height))
        small = photo.resize((max(1, round(width * scale)), max(1, round(height * scale)))) if scale < 1 else photo
        pixels = normalized(np.asarray(small), spec.mean, spec.std)
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().to(device)
            found = model(inputs)[0].argmax(0).to(torch.uint8).cpu().numpy()
        if scale < 1:
            from PIL import Image

            found = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
        yield image, found


def mask_png(labels: np.ndarray) -> bytes:
    """(H, W) uint8 classes as a PNG with a palette: the numbers stay the pixels' values."""
    from PIL import Image

    image = Image.fromarray(labels, mode="L")
    image.putpalette(palette())
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def palette() -> bytes:
    """256 colours, three bytes each: PASCAL VOC's, the bits of the number dealt out to red, green and blue in turn."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for place in range(3):  # each triple of bits gives one bit of every channel, the highest first
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * place + channel)) & 1) << (7 - place)).astype(np.uint8)
    return colours.tobytes()


@dataclass(frozen=True)
class Agreement:
    """``confusion[label, guess]`` counts pixels, (classes, classes)."""

    source: str
    images: int
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of pixels whose class is right."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def ious(self) -> dict[int, float]:
        """Intersection over union of each class that is in labels or guesses."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return {number: float(hits[number] / union[number]) for number in np.nonzero(union)[0].tolist()}

    @property
    def mean_iou(self) -> float:
        """The mean of ``ious``."""
        return float(np.mean(list(self.ious.values())))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {"source": self.source, "images": self.images, "mean_iou": self.mean_iou, "accuracy": self.accuracy}
        return found | {"iou": {str(number): value for number, value in self.ious.items()}}


def compare_masks(
    source: str, data: Path, masks: Path, options: PortOptions = DEFAULT, device: str = "cpu"
) -> Agreement:
    """Mean intersection over union on the images of ``data``, whose labels are in ``masks`` under the same names.

    A label is an image of class numbers (PNG, 8 bits or with a palette); 255 does not count. Raises PorterError naming
    an image without label, or of another size.
    """
    photos = find_photos(data)
    confusion = np.zeros((0, 0), np.int64)
    for photo, found in segment(source, photos, options, device):
        assert isinstance(photo, Path)
        labels = _labels(masks / photo.relative_to(data).with_suffix(".png"))
        if labels.shape != found.shape:
            raise PorterError(f"{photo}: {found.shape[0]}x{found.shape[1]} pixels, its label has {list(labels.shape)}")
        counts = labels != IGNORED
        most = int(max(found.max(initial=0), labels[counts].max(initial=0))) + 1
        if most > len(confusion):
            confusion = np.pad(confusion, (0, most - len(confusion)))
        pairs = labels[counts].astype(np.int64) * len(confusion) + found[counts]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    return Agreement(source, len(photos), confusion)


def _labels(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.mode not in ("L", "P"):
                raise PorterError(
                    f"{path}: a label has one number for each pixel (8 bits or a palette), not {opened.mode}"
                )
            return np.asarray(opened)
    except FileNotFoundError as error:
        raise PorterError(f"{path}: no such label; each image has one of its name, ending in .png") from error
    except PorterError:
        raise
    except Exception as error:  # Pillow's decoders have every kind for damaged bytes
        raise PorterError(f"{path}: not a readable PNG ({error})") from error


def shares(labels: np.ndarray, names: Sequence[str] = ()) -> list[tuple[int, str, float]]:
    """(class, name, share of the pixels), the largest first."""
    numbers, counts = np.unique(labels, return_counts=True)
    found = sorted(zip(numbers.tolist(), (counts / labels.size).tolist(), strict=True), key=lambda one: -one[1])
    return [(number, names[number] if number < len(names) else "", share) for number, share in found]
