"""An evaluation as a table for a terminal, and its classes as CSV."""

from __future__ import annotations

import csv
import io

from rich.table import Table

from porter.evaluation.result import Evaluation, Share
from porter.photos.labels import class_labels
from porter.report.console import console
from porter.text import printable


def print_evaluation(evaluation: Evaluation) -> None:
    """Accuracy of each classifier with its 95 % interval, how the two compare, and the speed."""
    out = console()
    table = Table("classifier", box=None, header_style="bold")
    for name in ("images", "top-1", "95 %", "top-5", "95 %"):
        table.add_column(name, justify="right")
    for number, name in enumerate(evaluation.classifiers):
        first, fifth = (evaluation.accuracy(number, k) for k in (1, 5))
        table.add_row(name, str(first.total), *_cells(first), *_cells(fifth))
    out.print(table)
    if len(evaluation.classifiers) > 1:
        change, half = evaluation.difference()
        same = evaluation.agreement()
        out.print(f"\nagreement  {same.hits} of {same.total} images have the same top-1 ({same.value:.2%})")
        out.print(f"top-1      the second less the first: {change * 100:+.2f} +- {half * 100:.2f} percentage points")
    if evaluation.skipped:
        count = len(evaluation.skipped)
        what = "1 image" if count == 1 else f"{count} images"
        out.print(f"\nskipped    {what} that could not be read: {_some(evaluation.skipped)}", markup=False)
    if evaluation.measured:
        measured, seconds, processes = evaluation.measured, evaluation.seconds, evaluation.processes
        by = f", {processes} processes" if processes > 1 else ""
        out.print(f"\nspeed      {measured} images in {seconds:.1f} s, {measured / seconds:.0f} images/s{by}")


def _some(names: list[str]) -> str:
    return printable(", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""))


def _cells(found: Share) -> tuple[str, str]:
    return f"{found.value:.2%}", f"{found.low:.1%} - {found.high:.1%}"


def per_class_csv(evaluation: Evaluation) -> bytes:
    """A row a class: number, WordNet id, names, images, and top-1 and top-5 of each classifier."""
    labels = class_labels(len(evaluation.class_names) or 1000, evaluation.class_names)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    several = len(evaluation.classifiers) > 1
    counts = [evaluation.per_class(number) for number in range(len(evaluation.classifiers))]
    columns = [f"{k} {name}" if several else k for name in evaluation.classifiers for k in ("top1", "top5")]
    writer.writerow(["class", "wordnet", "names", "images", *columns])
    for label, (images, *_) in counts[0].items():
        name = labels[label] if label < len(labels) else ("", "")
        writer.writerow([label, *name, images, *(count for one in counts for count in one[label][1:])])
    return file.getvalue().encode()
