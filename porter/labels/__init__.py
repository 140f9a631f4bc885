"""ImageNet's 1,000 classes: WordNet id and names, in the order of the classes, which is that of the ids.

The names are WordNet 3.0 lemmas, as timm lists them (timm/data/_info/imagenet_synset_to_lemma.txt).
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple


class Label(NamedTuple):
    """A class: WordNet id (``n01440764``) and WordNet's names for it (``tench, Tinca tinca``)."""

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
