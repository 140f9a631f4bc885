"""What a detector finds in images: boxes with classes and scores, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from porter.exports.runtime import boxes_session
from porter.models.create import OpenedModel
from porter.photos.images import resized
from porter.prediction.network import on_one_image, palette
from porter.text import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_NAME = 60  # characters of a class's name that are drawn


class Box(NamedTuple):
    """Top, left, bottom and right over the image's sides, the class (0 is the background's) and its score."""

    top: float
    left: float
    bottom: float
    right: float
    number: int
    score: float


def detector(opened: OpenedModel, device: str = "cpu") -> Callable[[Image], list[Box]]:
    """A function: a photo -> what the detector ``opened`` finds in it, highest scores first.

    Photos are resized as TensorFlow 1 does, to the size that the detector was trained at. Raises PorterError; the
    function raises it for outputs that are NaN.
    """
    network, size = opened.whole.network, opened.mapping.input.sides
    session, run = boxes_session(network, size), on_one_image(opened, device)

    def detect(photo: Image) -> list[Box]:
        encodings, logits = (one[None].cpu().numpy() for one in run(resized(photo, size, 1.0, "tf")))
        boxes, classes, scores = session.run(None, {"encodings": encodings, "logits": logits})
        return [
            Box(top, left, bottom, right, number, score)
            for (top, left, bottom, right), number, score in zip(
                boxes.tolist(), classes.tolist(), scores.tolist(), strict=True
            )
        ]

    return detect


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
        # Names come from files: they are drawn on one line, and cut
        label = f"{shortened(names[box.number], LONGEST_NAME) or box.number} {box.score:.0%}"
        draw.text((left + 2 * line, top + line), label, fill=colour)
    return picture
