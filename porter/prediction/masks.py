"""What a segmenter makes of a photo: a class for every pixel, and pictures of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from porter.errors import PorterError
from porter.models.create import OpenedModel
from porter.prediction.network import on_one_image, palette

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 2049  # pixels of a side; Cityscapes is evaluated at 1025 x 2049. Larger images are made smaller
MOST_CLASSES = 255  # that an 8-bit mask can hold, beside 255 for pixels that do not count


def segmenter(opened: OpenedModel, device: str = "cpu") -> Callable[[Image], np.ndarray]:
    """A function: a photo -> the class of each of its pixels, (H, W) uint8, by the segmenter ``opened``.

    A photo whose longer side has more than ``LONGEST`` pixels is made smaller, and the mask larger again. Raises
    PorterError where a mask cannot hold the classes; the function raises it for outputs that are NaN.
    """
    classes = opened.whole.num_classes
    if not 1 <= classes <= MOST_CLASSES:
        raise PorterError(f"{opened.given}: {classes} classes; a mask holds from 1 to {MOST_CLASSES}")
    run = on_one_image(opened, device)

    def segment(photo: Image) -> np.ndarray:
        from PIL.Image import Resampling, fromarray

        width, height = photo.size
        scale = min(1.0, LONGEST / max(width, height))
        small = photo.resize((max(1, round(width * scale)), max(1, round(height * scale)))) if scale < 1 else photo
        [logits] = run(np.asarray(small))
        found: np.ndarray = logits.argmax(0).cpu().numpy().astype(np.uint8)
        return np.asarray(fromarray(found).resize((width, height), Resampling.NEAREST)) if scale < 1 else found

    return segment


def mask_image(labels: np.ndarray) -> Image:
    """(H, W) uint8 classes as an image with a palette: the numbers stay the pixels' values."""
    from PIL import Image

    image = Image.fromarray(labels)
    image.putpalette(palette().tobytes())
    return image


def overlaid(photo: Image, labels: np.ndarray) -> Image:
    """``photo``, RGB of any size, with the colours of (H, W) uint8 classes half over it."""
    from PIL import Image

    return Image.blend(photo, mask_image(labels).resize(photo.size, Image.Resampling.NEAREST).convert("RGB"), 0.5)


def shares(labels: np.ndarray) -> list[tuple[int, float]]:
    """(class, its share of the pixels) for (H, W) classes, the largest share first."""
    numbers, counts = np.unique(labels, return_counts=True)
    return sorted(zip(numbers.tolist(), (counts / labels.size).tolist(), strict=True), key=lambda one: -one[1])
