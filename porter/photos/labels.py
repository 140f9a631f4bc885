"""Names of classes: ImageNet's 1,000, in the order of the classes, which is that of their WordNet ids, or one's own.

ImageNet's names are WordNet 3.0 lemmas, as timm lists them (timm/data/_info/imagenet_synset_to_lemma.txt).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from porter.errors import PorterError

MAX_FILE = 16 << 20  # bytes; ImageNet's 21,841 names have 1 MB


class Label(NamedTuple):
    """A class: WordNet id (``n01440764``; empty outside ImageNet) and its names (``tench, Tinca tinca``)."""

    wordnet: str
    names: str


BACKGROUND = Label("", "background")


def imagenet_labels(classes: int) -> list[Label]:
    """The labels of a classifier with ``classes`` outputs: 1,000, or 1,001 with the background first.

    Empty for any other number.
    """
    lines = files(__package__).joinpath("imagenet.txt").read_text("utf-8").splitlines()
    labels = [Label(*line.split("\t")) for line in lines]
    return {len(labels): labels, len(labels) + 1: [BACKGROUND, *labels]}.get(classes, [])


def class_labels(classes: int, names: Sequence[str] = ()) -> list[Label]:
    """``names`` as labels; else ImageNet's, if there are as many ``classes``; else none.

    Raises PorterError where there are not as many names as classes.
    """
    if not names:
        return imagenet_labels(classes)
    if len(names) != classes:
        raise PorterError(f"{len(names)} class names for {classes} classes; one name for each")
    return [Label("", name) for name in names]


def short_name(labels: Sequence[Label], number: int) -> str:
    """The first name of a class, with its number where another class has the same one (638 and 639 are maillots).

    ``class 7`` where ``labels`` has no such number.
    """
    if number >= len(labels):
        return f"class {number}"
    name = labels[number].names.partition(",")[0]
    shared = any(label.names.partition(",")[0] == name for other, label in enumerate(labels) if other != number)
    return f"{name} ({number})" if shared else name


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in ``path``, a line each, in the order of the classes. Raises PorterError."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise PorterError(f"{path}: {path.stat().st_size} bytes; a file of class names has a line each")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PorterError(f"{path}: not readable as class names, a line each ({error})") from error
    names = tuple(line.strip() for line in lines)
    if not names or "" in names:
        where = f"line {names.index('') + 1} is empty" if names else "no names in it"
        raise PorterError(f"{path}: {where}; one name a line, in the order of the classes")
    return names
