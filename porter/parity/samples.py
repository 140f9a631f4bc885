"""Inputs to compare on: noise, structured images that show padding errors, photos. NHWC float32 in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from porter.network.node import Size
from porter.network.spec import Input
from porter.photos.images import find_photos, normalized, read_image, resized

HALF = [0.5, 0.5, 0.5]  # mean and std of [-1, 1]


class Sample(NamedTuple):
    """A batch to run: ``images`` is (N, H, W, 3)."""

    label: str
    images: np.ndarray


def noise(size: Size, seed: int, count: int = 1) -> Sample:
    """Uniform noise from a seeded generator."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, *size, 3))
    return Sample(f"noise {size[0]}x{size[1]}", values.astype(np.float32))


def structured(size: Size) -> Sample:
    """One image: a ramp down (red), a ramp across (green), impulses at corners and edges (blue).

    Padding errors move ramps and impulses first, and float32 loses most on them.
    """
    height, width = size
    image = np.zeros((1, height, width, 3), np.float32)
    image[..., 0] = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    image[..., 1] = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    for number, (y, x) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1), (0, width // 2), (height // 2, -1)]):
        image[0, y, x, 2] = 1 if number % 2 else -1
    return Sample(f"structured {height}x{width}", image)


def photos(path: Path, size: Size, spec: Input, limit: int = 32) -> list[Sample]:
    """An image file, or the first ``limit`` of a folder, cropped as model cards say, in [-1, 1]. Raises PorterError."""
    found = []
    for file in find_photos(path)[:limit] if path.is_dir() else [path]:
        pixels = resized(read_image(file), size, spec.crop, "card")
        found.append(Sample(f"{file.name} {size[0]}x{size[1]}", normalized(pixels, HALF, HALF)[None]))
    return found
