"""An evaluation as a table for a terminal, its classes as CSV, and as one self-contained HTML file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from porter.errors import PorterError
from porter.evaluation.result import Evaluation, Scores, Share
from porter.photos.images import read_image
from porter.photos.labels import short_name
from porter.report.console import console
from porter.report.pages import as_uri, rendered
from porter.text import csv_text, listed, printable

CONFUSIONS, WORST, PHOTOS, DISAGREEING = 10, 6, 4, 12  # shown of each
SIDE = 224  # pixels of a photo


def print_evaluation(evaluation: Evaluation | Scores) -> None:
    """Print accuracy with 95 % intervals, the comparison of two classifiers, and speed; or ``Scores``."""
    out = console()
    if isinstance(evaluation, Scores):
        _print_scores(evaluation)
        return
    table = Table("classifier", box=None, header_style="bold")
    for name in ("images", "top-1", "95 %", "top-5", "95 %"):
        table.add_column(name, justify="right")
    for number, name in enumerate(evaluation.classifiers):
        first, fifth = (evaluation.accuracy(number, k) for k in (1, 5))
        table.add_row(escape(printable(name)), str(first.total), *_cells(first), *_cells(fifth))
    out.print(table)
    if len(evaluation.classifiers) > 1:
        change, half = evaluation.difference()
        same = evaluation.agreement()
        out.print(f"\nagreement  {same.hits} of {same.total} images have the same top-1 ({same.value:.2%})")
        out.print(f"top-1      second minus first: {change * 100:+.2f} +- {half * 100:.2f} percentage points")
    _print_skipped(evaluation.skipped)
    if evaluation.measured:
        measured, seconds, processes = evaluation.measured, evaluation.seconds, evaluation.processes
        by = f", {processes} processes" if processes > 1 else ""
        out.print(f"\nspeed      {measured} images in {seconds:.1f} s, {measured / seconds:.0f} images/s{by}")


def _print_scores(scores: Scores) -> None:
    figures = ", ".join(f"{name} {value:.2%}" for name, value in scores.figures.items())
    out = console()
    images = "1 image" if scores.images == 1 else f"{scores.images} images"
    out.print(f"{printable(scores.source)}: {figures}, {images}", markup=False, soft_wrap=True)
    for number, value in scores.classes.items():
        name = printable(scores.names.get(number, ""))
        out.print(f"  {value:7.2%}  {number:>4}  {name}".rstrip(), markup=False, soft_wrap=True)
    _print_skipped(scores.skipped)


def _print_skipped(names: list[str]) -> None:
    if names:
        what = "1 image" if len(names) == 1 else f"{len(names)} images"
        console().print(f"\nskipped    {what} that could not be read: {listed(names, 3)}", markup=False)


def _cells(found: Share) -> tuple[str, str]:
    return f"{found.value:.2%}", f"{found.low:.1%} - {found.high:.1%}"


def per_class_csv(evaluation: Evaluation | Scores) -> bytes:
    """A row per class: number, WordNet id, names, images, top-1 and top-5 of each classifier; or of ``Scores``."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if isinstance(evaluation, Scores):
        writer.writerow(["class", "name", evaluation.measure.lower()])
        writer.writerows([n, csv_text(evaluation.names.get(n, "")), value] for n, value in evaluation.classes.items())
        return file.getvalue().encode()
    labels = evaluation.labels()
    several = len(evaluation.classifiers) > 1
    counts = [evaluation.per_class(number) for number in range(len(evaluation.classifiers))]
    columns = [csv_text(f"{k} {name}") if several else k for name in evaluation.classifiers for k in ("top1", "top5")]
    writer.writerow(["class", "wordnet", "names", "images", *columns])
    for label, (images, *_) in counts[0].items():
        name = labels[label] if label < len(labels) else ("", "")
        writer.writerow([label, *map(csv_text, name), images, *(count for one in counts for count in one[label][1:])])
    return file.getvalue().encode()


def evaluation_html(evaluation: Evaluation | Scores) -> bytes:
    """The whole page, UTF-8. Of a classifier, it reads the photos that it shows."""
    if isinstance(evaluation, Scores):
        return rendered("scores", scores=evaluation, skipped=evaluation.skipped)
    named = partial(short_name, evaluation.labels())
    several = len(evaluation.classifiers) > 1
    apart = [i for i, seen in enumerate(evaluation.seen) if several and seen.guesses[0] != seen.guesses[1]]
    confusions = [(name, evaluation.confusions(i)[:CONFUSIONS]) for i, name in enumerate(evaluation.classifiers)]
    return rendered(
        "evaluation",
        evaluation=evaluation,
        several=several,
        named=named,
        skipped=evaluation.skipped,
        confusions=[pair for pair in confusions if pair[1]],
        worst=_worst(evaluation, named),
        disagreeing=[_photo(evaluation, i, named) for i in apart[:DISAGREEING]],
    )


def _worst(evaluation: Evaluation, named: Callable[[int], str]) -> list[dict[str, Any]]:
    counts = evaluation.per_class(0)
    order = sorted(counts, key=lambda label: (counts[label][1] / counts[label][0], -counts[label][0], label))
    found = []
    for label in [label for label in order if counts[label][1] < counts[label][0]][:WORST]:
        wrong = [i for i, seen in enumerate(evaluation.seen) if seen.label == label and seen.ranks[0] > 0]
        images, right, _ = counts[label]
        photos = [_photo(evaluation, i, named) for i in wrong[:PHOTOS]]
        found.append({"label": named(label), "images": images, "right": right, "photos": photos})
    return found


def _photo(evaluation: Evaluation, number: int, named: Callable[[int], str]) -> dict[str, Any]:
    """Values for a figure; no picture of a photo that no longer exists."""
    seen, path = evaluation.seen[number], Path(evaluation.photos[number])
    guesses = [named(guess) for guess in seen.guesses]
    if len(guesses) > 1:
        guesses = [f"{name}: {guess}" for name, guess in zip(evaluation.classifiers, guesses, strict=True)]
    try:
        png = as_uri(read_image(path), SIDE)
    except PorterError:
        png = ""
    return {"file": path.name, "label": named(seen.label), "guesses": guesses, "png": png}
