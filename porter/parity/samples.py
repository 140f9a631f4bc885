"""Inputs to compare on: noise, structured images that show padding errors, photos. NHWC float32 in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from porter.errors import ParityError

Size = tuple[int, int]  # height, width in pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Sample(NamedTuple):
    """A batch to run: ``images`` is (N, H, W, 3)."""

    label: str
    images: np.ndarray


def noise(size: Size, seed: int, count: int = 2) -> Sample:
    """Uniform noise from a seeded generator."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, *size, 3))
    return Sample(f"noise {size[0]}x{size[1]}", values.astype(np.float32))


def structured(size: Size) -> Sample:
    """Ramps along each axis, and impulses at corners and edges: what a padding error moves first."""
    height, width = size
    images = np.zeros((3, height, width, 3), np.float32)
    images[0] = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    images[1] = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    for number, (y, x) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1), (0, width // 2), (height // 2, -1)]):
        images[2, y, x] = 1 if number % 2 else -1
    return Sample(f"structured {height}x{width}", images)


def photos(path: Path, size: Size, crop: float, limit: int = 32) -> Sample:
    """An image file, or the first ``limit`` of a folder: central ``crop``, bilinear to ``size``, [-1, 1].

    Raises ParityError on an unreadable file.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ParityError(f"{path}: reading images needs Pillow; pip install 'mnv3-port[images]'") from error
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)[:limit]
    if not files:
        raise ParityError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ParityError(f"{file}: not a readable image ({error})") from error
        left, top = (round(side * (1 - crop) / 2) for side in image.size)
        box = (left, top, image.width - left, image.height - top)
        resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
        images.append(np.asarray(resized, np.float32) / 127.5 - 1)
    return Sample(f"{len(images)} photos {size[0]}x{size[1]}", np.stack(images))
