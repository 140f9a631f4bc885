"""Labelled images: class folders, WordNet ids in file names, or a CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from porter.errors import PorterError
from porter.photos.images import find_photos
from porter.photos.labels import imagenet_labels

WORDNET_ID = re.compile(r"n\d{8}")
NUMBER = re.compile(r"[0-9]{1,6}")  # of a class


class Labelled(NamedTuple):
    """An image file and the number of its class, 0 to 999 for ImageNet."""

    path: Path
    label: int


def find_labelled(data: Path, labels: Path | None = None, class_names: Sequence[str] = ()) -> list[Labelled]:
    """The photos of ``data`` (``find_photos``) with their classes, in a fixed order.

    ``data`` is a folder of class folders named by WordNet id (or by one of ``class_names``, a classifier's own), a
    folder of images with the id in their names (``ILSVRC2012_val_00000001_n01751748.JPEG``), or one of images that the
    CSV ``labels`` names. Raises PorterError naming what has no label, or no file.
    """
    files = find_photos(data)
    known = {label.wordnet: number for number, label in enumerate(imagenet_labels(1000))}
    known |= {name: number for number, name in enumerate(class_names)}
    found = list(_of_csv(data, files, labels, known) if labels else _by_name(data, files, known))
    if not found:
        raise PorterError(f"{labels}: names no image; a row is `file,label`")
    return found


def _by_name(data: Path, files: list[Path], known: dict[str, int]) -> Iterator[Labelled]:
    for path in files:
        name = path.parent.name if path.parent != data else path.stem
        ids = [name] if name in known else WORDNET_ID.findall(name)
        if len(ids) != 1 or ids[0] not in known:
            raise PorterError(
                f"{path}: neither its folder nor its name is that of a class (a WordNet id such as n01440764); "
                "give --labels FILE.csv"
            )
        yield Labelled(path, known[ids[0]])


def _of_csv(data: Path, photos: list[Path], labels: Path, known: dict[str, int]) -> Iterator[Labelled]:
    """Rows of ``file, label``: a path below ``data`` (suffix optional), and a WordNet id or class number.

    A first row of no image, and without a label, is a header; what follows the label after a space (boxes, in
    ImageNet's own files) does not count.
    """
    if labels.is_dir():
        raise PorterError(f"{labels}: is a folder; the labels of a classifier are a CSV, rows of `file,label`")
    files = {str(path.relative_to(data)): path for path in photos}
    files |= {name.rpartition(".")[0]: path for name, path in files.items()}
    try:
        with labels.open(newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.reader(opened) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PorterError(f"{labels}: not a readable CSV ({error})") from error
    seen: set[Path] = set()
    for line, row in enumerate(rows, 1):
        label = row[1].strip() if len(row) > 1 else ""
        if label not in known:
            label = (label.split() or [""])[0]
        if label not in known and not NUMBER.fullmatch(label):
            if line == 1 and row[0] not in files:
                continue
            raise PorterError(f"{labels}: line {line}: {row!r} is not `file,label` with a WordNet id or class number")
        if row[0] not in files:
            raise PorterError(f"{labels}: line {line}: {data / row[0]}: no such image")
        if files[row[0]] in seen:
            raise PorterError(f"{labels}: line {line}: {row[0]} is listed twice")
        seen.add(files[row[0]])
        yield Labelled(files[row[0]], known[label] if label in known else int(label))
