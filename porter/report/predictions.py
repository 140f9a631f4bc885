"""Predictions as one HTML file that needs nothing else: a grid of images and their likeliest classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from porter.photos.images import Photo, read_image
from porter.prediction.classes import Guess
from porter.report.pages import of_image, rendered
from porter.text import printable

SIDE = 320  # pixels of an image


def predictions_html(source: str, found: Sequence[tuple[Photo, list[Guess]]]) -> bytes:
    """The whole page, UTF-8. Raises PorterError if an image no longer exists."""
    images = [
        {"name": _name(image), "png": of_image(_again(image), SIDE), "guesses": [_guess(guess) for guess in guesses]}
        for image, guesses in found
    ]
    return rendered("predictions", source=printable(source), images=images)


def _again(image: Photo):  # type: ignore[no-untyped-def]  # Pillow's Image, which is imported when needed
    if not isinstance(image, Path):
        image.seek(0)
    return read_image(image)


def _name(image: Path | BinaryIO) -> str:
    return printable(image.name) if isinstance(image, Path) else "standard input"


def _guess(guess: Guess) -> tuple[str, float]:
    names = guess.label.names.split(",")[0] if guess.label else f"class {guess.number}"
    return printable(names), guess.probability
