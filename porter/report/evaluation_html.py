"""An evaluation as one self-contained HTML file: accuracy, confusions, the worst classes and their photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from porter.errors import PorterError
from porter.evaluation.result import Evaluation, Scores
from porter.photos.images import read_image
from porter.photos.labels import Label, class_labels, short_name
from porter.report.pages import of_image, rendered
from porter.text import printable

CONFUSIONS, WORST, PHOTOS, DISAGREEING = 10, 6, 4, 12  # shown of each
SIDE = 224  # pixels of a photo


def evaluation_html(evaluation: Evaluation | Scores) -> bytes:
    """The whole page, UTF-8. Of a classifier, it reads the photos that it shows."""
    if isinstance(evaluation, Scores):
        classes = [
            (number, printable(evaluation.names.get(number, "")), value) for number, value in evaluation.classes.items()
        ]
        skipped = [printable(name) for name in evaluation.skipped]
        found = evaluation._replace(source=printable(evaluation.source), skipped=skipped)
        return rendered("scores", scores=found, classes=classes)
    names = class_labels(len(evaluation.class_names) or 1000, evaluation.class_names)
    several = len(evaluation.classifiers) > 1
    results = [
        {"name": printable(name), "first": evaluation.accuracy(i, 1), "fifth": evaluation.accuracy(i, 5)}
        for i, name in enumerate(evaluation.classifiers)
    ]
    confusions = [
        (
            printable(name),
            [
                {"label": _name(names, label), "guess": _name(names, guess), "count": count}
                for label, guess, count in evaluation.confusions(i)[:CONFUSIONS]
            ],
        )
        for i, name in enumerate(evaluation.classifiers)
    ]
    apart = [i for i, seen in enumerate(evaluation.seen) if several and seen.guesses[0] != seen.guesses[1]]
    return rendered(
        "evaluation",
        results=results,
        images=len(evaluation.seen),
        preprocess=evaluation.preprocess,
        skipped=[printable(name) for name in evaluation.skipped],
        change=evaluation.difference() if several else None,
        agreement=evaluation.agreement() if several else None,
        confusions=[pair for pair in confusions if pair[1]],
        worst=_worst(evaluation, names),
        disagreeing=[_photo(evaluation, i, names) for i in apart[:DISAGREEING]],
    )


def _worst(evaluation: Evaluation, names: list[Label]) -> list[dict[str, Any]]:
    counts = evaluation.per_class(0)
    order = sorted(counts, key=lambda label: (counts[label][1] / counts[label][0], -counts[label][0], label))
    found = []
    for label in [label for label in order if counts[label][1] < counts[label][0]][:WORST]:
        wrong = [i for i, seen in enumerate(evaluation.seen) if seen.label == label and seen.ranks[0] > 0]
        images, right, _ = counts[label]
        photos = [_photo(evaluation, i, names) for i in wrong[:PHOTOS]]
        found.append({"label": _name(names, label), "images": images, "right": right, "photos": photos})
    return found


def _photo(evaluation: Evaluation, number: int, names: list[Label]) -> dict[str, Any]:
    seen, path = evaluation.seen[number], Path(evaluation.photos[number])
    several = len(evaluation.classifiers) > 1
    guesses = [
        f"{printable(classifier) + ': ' if several else ''}{_name(names, guess)}"
        for classifier, guess in zip(evaluation.classifiers, seen.guesses, strict=True)
    ]
    return {"file": printable(path.name), "label": _name(names, seen.label), "guesses": guesses, "png": thumbnail(path)}


def thumbnail(path: Path) -> str:
    """The photo as a data URI; empty if it no longer exists."""
    try:
        return of_image(read_image(path), SIDE)
    except PorterError:
        return ""


def _name(names: list[Label], number: int) -> str:
    return printable(short_name(names, number)) if number < len(names) else f"class {number}"
