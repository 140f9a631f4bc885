"""``evaluate``: how good a port is on labelled images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porter.commands.options import (
    FILE,
    OUTPUT,
    check_outputs,
    model_options,
    preprocess_option,
    refuse_ignored,
    skip_option,
    taken_port_options,
)
from porter.text import json_text, printable

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("data", type=FILE)
@model_options
@click.option("--labels", type=FILE, metavar="CSV", help="Rows of `file,label`, where names do not tell the class.")
@click.option("--compare", metavar="OTHER", help="Another artifact or source, timm:NAME, or tf:SOURCE.")
@preprocess_option
@skip_option
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images at a time.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Processes that decode images.")
@click.option("--resume", type=FILE, metavar="FOLDER", help="Keep finished batches here, and go on from them.")
@click.option("--per-class", type=OUTPUT, metavar="CSV|-", help="Write the counts of every class.")
@click.option("--force", is_flag=True, help="Overwrite the file of --per-class.")
@click.option("--html", type=OUTPUT, metavar="FILE|-", help="Write a report as well: one page that needs no network.")
@click.option("--masks", type=FILE, metavar="LABELS", help="Of a segmenter: the folder of DATA's labels, as PNG.")
@click.option("--boxes", type=FILE, metavar="JSON", help="Of a detector: COCO's annotations of DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    source: str,
    data: Path,
    per_class: Path | None,
    masks: Path | None,
    boxes: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Measure the accuracy of SOURCE on the labelled images of DATA; a segmenter's mean IoU, a detector's mAP.

    DATA is a folder of class folders named by WordNet id or class name, or of images with the id in their names. To
    share the work among processes, machines or GPUs: torchrun --nproc-per-node N -m porter evaluate ...
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from porter.atomic import refuse_existing, write_bytes
    from porter.evaluation.run import Settings, evaluate
    from porter.photos.labels import read_class_names
    from porter.report.console import progress_console

    if masks is not None:
        refuse_ignored("masks", "json", "device", "class_names")
        _evaluate_masks(source, data, masks, options)
        return
    if boxes is not None:
        refuse_ignored("boxes", "json", "device")
        _evaluate_boxes(source, data, boxes, options)
        return
    force, as_json = options.pop("force"), options.pop("as_json")
    check_outputs(per_class, html, as_json=as_json)
    if per_class:
        refuse_existing(per_class, force)
    port = taken_port_options(options)
    names = options.pop("class_names")
    settings = Settings(class_names=read_class_names(names) if names else (), **options)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    console = progress_console()
    shown = console.is_terminal and os.environ.get("RANK", "0") == "0"
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None, speed="")

        def advance(done: int, total: int) -> None:
            rate = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, speed=f"{rate:.0f} images/s" if rate else "")

        result = evaluate(source, data, port, settings, advance)
    if result is None:  # another process has it
        return
    if per_class:
        from porter.report.evaluation_table import per_class_csv

        write_bytes(per_class, per_class_csv(result), force)
    if html:
        from porter.report.evaluation_html import evaluation_html

        write_bytes(html, evaluation_html(result), force=True)
    if as_json:
        click.echo(json_text(result.as_json(), indent=1))
    else:
        from porter.report.evaluation_table import print_evaluation

        print_evaluation(result)


def _evaluate_masks(source: str, data: Path, masks: Path, options: dict[str, Any]) -> None:
    from porter.photos.labels import read_class_names
    from porter.prediction.masks import compare_masks

    names = read_class_names(options["class_names"]) if options["class_names"] else ()
    found = compare_masks(source, data, masks, taken_port_options(options), options["device"] or "cpu")
    if options["as_json"]:
        click.echo(json_text(found.as_json(), indent=1))
        return
    click.echo(
        f"{printable(source)}: mean IoU {found.mean_iou:.2%}, pixels {found.accuracy:.2%}, {found.images} images"
    )
    for number, value in found.ious.items():
        click.echo(f"  {value:7.2%}  {number:>4}  {printable(names[number] if number < len(names) else '')}".rstrip())


def _evaluate_boxes(source: str, data: Path, annotations: Path, options: dict[str, Any]) -> None:
    from porter.prediction.boxes import average_precision

    found = average_precision(source, data, annotations, taken_port_options(options), options["device"] or "cpu")
    if options["as_json"]:
        click.echo(json_text(found._asdict(), indent=1))
        return
    figures = f"mAP {found.mean:.2%}, at 0.5 {found.at_50:.2%}, at 0.75 {found.at_75:.2%}"
    click.echo(f"{printable(source)}: {figures}, {found.images} images")
