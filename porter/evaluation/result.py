"""The outcome of an evaluation, as a value."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from porter.photos.labels import Label, class_labels

Z = 1.959963984540054  # standard deviations around the mean that hold 95 % of a normal distribution


class Seen(NamedTuple):
    """One image: class, and by classifier the rank of that class (0: top-1) and the class guessed.

    Both are empty for an image that could not be read.
    """

    label: int
    ranks: list[int]
    guesses: list[int]


class Share(NamedTuple):
    """``hits`` of ``total``, with the 95 % interval (Wilson, JASA 22, 1927) of the share that it estimates."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.total

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {"hits": self.hits, "of": self.total, "share": self.value, "low": self.low, "high": self.high}


def share(count: int, total: int) -> Share:
    """``count`` of ``total`` (at least one) with its interval."""
    middle = (count + Z * Z / 2) / (total + Z * Z)
    half = Z / (total + Z * Z) * math.sqrt(count * (total - count) / total + Z * Z / 4)
    return Share(count, total, max(0.0, middle - half), min(1.0, middle + half))


@dataclass
class Evaluation:
    """The result for every image and classifier. This run ``measured`` that number of images in ``seconds``.

    ``photos`` are the files, in the order of ``seen``; ``skipped`` those that could not be read.
    """

    classifiers: list[str]
    digests: list[str]
    preprocess: str
    seen: list[Seen]
    measured: int
    seconds: float
    processes: int
    photos: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)

    def labels(self) -> list[Label]:
        """The classes' names: those given, or ImageNet's."""
        return class_labels(len(self.class_names) or 1000, self.class_names)

    def accuracy(self, classifier: int, k: int) -> Share:
        """How often the class is among the ``k`` highest."""
        return share(sum(seen.ranks[classifier] < k for seen in self.seen), len(self.seen))

    def per_class(self, classifier: int) -> dict[int, tuple[int, int, int]]:
        """Class -> images, top-1, top-5."""
        counts: dict[int, tuple[int, int, int]] = {}
        for seen in self.seen:
            images, first, fifth = counts.get(seen.label, (0, 0, 0))
            rank = seen.ranks[classifier]
            counts[seen.label] = images + 1, first + (rank < 1), fifth + (rank < 5)
        return dict(sorted(counts.items()))

    def confusions(self, classifier: int) -> list[tuple[int, int, int]]:
        """(class, class guessed instead, images), most frequent first."""
        pairs = Counter((s.label, s.guesses[classifier]) for s in self.seen if s.ranks[classifier] > 0)
        return [(*pair, count) for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]

    def agreement(self) -> Share:
        """How often the first two classifiers guess the same class."""
        return share(sum(seen.guesses[0] == seen.guesses[1] for seen in self.seen), len(self.seen))

    def difference(self) -> tuple[float, float]:
        """Top-1 of the second classifier minus the first's, and half its 95 % interval, paired by image."""
        changes = [(seen.ranks[1] < 1) - (seen.ranks[0] < 1) for seen in self.seen]
        mean = sum(changes) / len(changes)
        variance = sum((change - mean) ** 2 for change in changes) / len(changes)
        return mean, Z * math.sqrt(variance / len(changes))

    def as_json(self) -> dict[str, Any]:
        """Everything but the single images, as plain values."""
        results = [
            {"classifier": name, "sha256": digest} | {f"top{k}": self.accuracy(i, k).as_json() for k in (1, 5)}
            for i, (name, digest) in enumerate(zip(self.classifiers, self.digests, strict=True))
        ]
        found: dict[str, Any] = {"images": len(self.seen), "preprocess": self.preprocess, "results": results}
        if len(self.classifiers) > 1:
            change, half = self.difference()
            found |= {"agreement": self.agreement().as_json(), "top1_change": change, "top1_change_interval": half}
        if self.skipped:
            found["skipped"] = self.skipped
        run = {"images": self.measured, "seconds": self.seconds, "processes": self.processes}
        return found | {"run": run}


class Scores(NamedTuple):
    """How good a segmenter or detector is on ``images``: ``figures`` of all classes, and ``measure`` of each class.

    All lie between 0 and 1. ``skipped`` are the photos that could not be read.
    """

    source: str
    images: int
    figures: dict[str, float]
    measure: str
    classes: dict[int, float]
    names: dict[int, str]
    skipped: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``mean IoU`` is called ``mean_iou``."""
        figures = {name.lower().replace(" ", "_"): value for name, value in self.figures.items()}
        classes = {str(number): value for number, value in self.classes.items()}
        found = {"source": self.source, "images": self.images} | figures | {self.measure.lower(): classes}
        return found | ({"skipped": self.skipped} if self.skipped else {})
