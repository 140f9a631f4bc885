"""Photos as the network takes them: decoded, cropped, resized, normalised; (H, W, 3) float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import numpy as np

from porter.errors import PorterError
from porter.network.node import Size

if TYPE_CHECKING:
    from PIL.Image import Image

Photo = Path | BinaryIO  # a file, or an open one, which is standard input
AnyPhoto = TypeVar("AnyPhoto", bound=Photo)
Preprocessing = Literal["card", "tf", "tf2"]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # what photos come in; Pillow knows 60 others
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # what files of them end in
# Resizing brings the shorter side to 256 pixels, and the longer one with it; a panorama is 1 : 10
MAX_ASPECT = 50


def find_photos(folder: Path) -> list[Path]:
    """The photos in ``folder`` and below it, sorted: files whose names end in one of ``PHOTO_SUFFIXES``, in any case.

    Raises PorterError where it is no folder, or has none.
    """
    if not folder.is_dir():
        raise PorterError(
            f"{folder}: {'is a file; name the folder of images' if folder.exists() else 'no such folder of images'}"
        )
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    if not found:
        raise PorterError(f"{folder}: no images ({', '.join(PHOTO_SUFFIXES)}) in this folder or below it")
    return found


def expand(given: Sequence[str]) -> list[Path]:
    """The photos that ``given`` name: files, folders (``find_photos``), patterns such as ``*.jpg``.

    Raises PorterError for what names none.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            found += find_photos(path)
        elif path.exists():
            found.append(path)
        else:
            matches = sorted(glob(name, recursive=True))  # noqa: PTH207 - the pattern may be absolute
            files = [Path(match) for match in matches if Path(match).is_file()]
            if not files:
                raise PorterError(f"{name}: no such image or folder")
            found += files
    return found


def photo_name(photo: Photo) -> str:
    """The path, or ``-`` for standard input."""
    return str(photo) if isinstance(photo, Path) else "-"


def read_images(
    photos: Iterable[AnyPhoto], skipped: list[tuple[AnyPhoto, PorterError]] | None = None
) -> Iterator[tuple[AnyPhoto, Image]]:
    """Each of ``photos``, decoded. ``skipped`` gets those that cannot be read; without it they raise PorterError."""
    for photo in photos:
        try:
            image = read_image(photo)
        except PorterError as error:
            if skipped is None:
                raise
            skipped.append((photo, error))
            continue
        yield photo, image


def read_image(photo: Photo) -> Image:
    """Decode a file, or an open binary one, to 8-bit RGB. Raises PorterError where it is no readable image.

    Of 16 bits the higher eight are taken, as by TensorFlow's decode_png.
    """
    from PIL import Image, UnidentifiedImageError

    path = photo_name(photo)
    try:
        if isinstance(photo, Path) and photo.exists() and not photo.is_file():  # a FIFO would wait for its writer
            raise PorterError(f"{path}: not a regular file")
        with Image.open(photo, formats=FORMATS) as opened:
            width, height = opened.size
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise PorterError(f"{path}: an image of {width} x {height} pixels; not a photo")
            if opened.mode == "RGB":
                opened.load()
                return opened
            if opened.mode.startswith("I;16"):  # convert() would make every value above 255 white
                return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
            if opened.mode in ("I", "F"):
                raise PorterError(
                    f"{path}: an image of 32-bit values, which does not say which one is white; save it with 8 or 16 "
                    "bits, from black to white"
                )
            return opened.convert("RGB")
    except PorterError:
        raise
    except UnidentifiedImageError as error:
        raise PorterError(f"{path}: not a readable image ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders have every kind for damaged bytes
        raise PorterError(f"{path}: not a readable image ({error})") from error


def resized(image: Image, size: Size, crop: float, how: Preprocessing) -> np.ndarray:
    """The central part of ``image`` (``crop`` of each side) at ``size``: (H, W, 3), uint8, or float32 in [0, 1].

    ``card`` is what timm's cards mean, bit for bit: the shorter side to size / crop by Pillow's antialiased bilinear
    filter, then the central ``size`` (timm.data.transforms_imagenet_eval). ``tf`` is what the network was trained
    and evaluated with, ``preprocess_for_eval`` of slim/preprocessing/inception_preprocessing.py: central crop
    and bilinear without antialiasing, corners at whole pixels. ``tf2`` is tf.image.central_crop and tf.image.resize,
    which put the centres at half pixels.
    """
    if how == "card":
        return _short_side(image, size, crop)
    pixels = np.asarray(image)
    top, left = (int((side - side * crop) / 2) for side in pixels.shape[:2])  # as tf.image.central_crop
    pixels = pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]
    return _bilinear(pixels, size, half_pixels=how == "tf2")


def normalized(
    pixels: np.ndarray,
    mean: list[float],
    std: list[float],
    levels: list[list[float]] | None = None,
    dtype: type[np.floating[Any]] = np.float32,
) -> np.ndarray:
    """What ``resized`` gave, or a batch of it, minus ``mean`` over ``std``; (..., H, W, 3) of ``dtype``.

    With ``levels`` (256 numbers for all channels, or for each) those of the pixels instead, floats rounded to pixels.
    Each channel lies together in memory, as PyTorch and ONNX Runtime take it. Raises PorterError where the network does
    not take colours.
    """
    if len(mean) != pixels.shape[-1]:
        raise PorterError(f"the network takes images of {len(mean)} channels, and photos have {pixels.shape[-1]}")
    if levels is not None:
        whole = pixels if pixels.dtype == np.uint8 else np.round(pixels * np.float32(255)).clip(0, 255).astype(np.uint8)
        planes = np.stack([np.array(row, np.float32)[whole[..., c]] for c, row in zip(range(3), cycle(levels))], -3)
        return np.moveaxis(planes, -3, -1)
    planes = np.moveaxis(pixels, -1, -3).astype(dtype, order="C")
    if pixels.dtype == np.uint8:
        planes /= dtype(255)
    planes -= np.array(mean, dtype)[:, None, None]
    planes /= np.array(std, dtype)[:, None, None]
    return np.moveaxis(planes, -3, -1)


def _short_side(image: Image, size: Size, crop: float) -> np.ndarray:
    from PIL.Image import Resampling

    width, height = image.size
    targets = int(size[0] / crop), int(size[1] / crop)
    if targets[0] / height >= targets[1] / width:  # the height is the side that decides
        wanted = int(targets[0] * width / height), targets[0]
    else:
        wanted = targets[1], int(targets[1] * height / width)
    wanted = max(wanted[0], size[1]), max(wanted[1], size[0])
    shrunk = image.resize(wanted, Resampling.BILINEAR)
    left, top = round((wanted[0] - size[1]) / 2), round((wanted[1] - size[0]) / 2)
    return np.asarray(shrunk.crop((left, top, left + size[1], top + size[0])))


def _bilinear(pixels: np.ndarray, size: Size, half_pixels: bool) -> np.ndarray:
    """(h, w, 3) uint8 -> (H, W, 3) float32 in [0, 1].

    tensorflow/core/kernels/image/resize_bilinear_op.cc, operation by operation in float32; only the pixels that
    count are converted.
    """
    above, below, down = _taps(pixels.shape[0], size[0], half_pixels)
    before, after, right = _taps(pixels.shape[1], size[1], half_pixels)

    def at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return pixels[rows[:, None], columns].astype(np.float32) * np.float32(1 / 255)

    right, down = right[None, :, None], down[:, None, None]
    top = at(above, before)
    top += (at(above, after) - top) * right
    bottom = at(below, before)
    bottom += (at(below, after) - bottom) * right
    return top + (bottom - top) * down


def _taps(side: int, target: int, half_pixels: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``target`` output pixels: the two input pixels and the weight of the second."""
    scale = np.float32(side) / np.float32(target)
    position = np.arange(target, dtype=np.float32)
    half = np.float32(0.5 if half_pixels else 0)
    position = (position + half) * scale - half
    floor = np.floor(position)
    lower = np.maximum(floor, 0).astype(np.int64)
    upper = np.minimum(np.ceil(position), side - 1).astype(np.int64)
    return lower, upper, position - floor
