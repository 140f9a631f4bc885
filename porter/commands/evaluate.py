"""``evaluate``: the accuracy of a port on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from porter.commands.options import (
    FILE,
    OUTPUT,
    check_outputs,
    echo_json,
    model_options,
    preprocess_option,
    refuse_ignored,
    skip_option,
    taken_port_options,
)


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("data", type=FILE)
@click.option(
    "--labels",
    type=FILE,
    metavar="CSV|FOLDER|JSON",
    help="For a classifier: rows of `file,label`, if names do not give the class. For a segmenter: the folder of DATA's"
    " masks, PNGs named like the images. For a detector: COCO's annotations of DATA.",
)
@model_options
@click.option("--compare", metavar="OTHER", help="Another classifier: an artifact or source, timm:NAME, or tf:SOURCE.")
@preprocess_option
@skip_option
@click.option("--batch", type=click.IntRange(1), default=32, help="Images at a time.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Processes that decode images.")
@click.option("--resume", type=FILE, metavar="FOLDER", help="Keep finished batches here, and continue from them.")
@click.option("--per-class", type=OUTPUT, metavar="CSV|-", help="Write the figures of every class.")
@click.option("--force", is_flag=True, help="Overwrite the file of --per-class.")
@click.option("--html", type=OUTPUT, metavar="FILE|-", help="Also write a report: one page that needs no network.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(source: str, data: Path, per_class: Path | None, html: Path | None, **options: Any) -> None:
    """Measure SOURCE on the labelled images of DATA: accuracy, a segmenter's mean IoU, a detector's mAP.

    For a classifier, DATA is a folder of class folders named by WordNet id or class name, or of images with the id in
    their names; for the others, --labels gives the contents of its images. To share a classifier's work among
    processes, machines or GPUs: torchrun --nproc-per-node N -m porter evaluate ...
    """
    from porter.atomic import check_folder, refuse_existing, write_bytes
    from porter.evaluation.evaluate import OF_CLASSIFIERS, open_measure
    from porter.evaluation.run import Settings
    from porter.photos.labels import read_class_names
    from porter.report.console import image_progress
    from porter.report.evaluation import evaluation_html, per_class_csv, print_evaluation

    force, as_json = options.pop("force"), options.pop("as_json")
    check_outputs(per_class, html, as_json=as_json)
    if force and not per_class:
        raise click.UsageError("--force is for the file of --per-class")
    if per_class:
        refuse_existing(per_class, force)
    if options["resume"]:
        check_folder(options["resume"])
    port = taken_port_options(options)
    names = options.pop("class_names")
    settings = Settings(class_names=read_class_names(names) if names else (), **options)
    kind, measure = open_measure(source, port)
    if kind != "classifier":
        refuse_ignored(f"{source} is a {kind}", *OF_CLASSIFIERS)
    with image_progress() as advance:
        result = measure(data, settings, advance)
    if result is None:  # another process holds it
        return
    if per_class:
        write_bytes(per_class, per_class_csv(result), force)
    if html:
        write_bytes(html, evaluation_html(result), force=True)
    if as_json:
        echo_json(result.as_json())
    else:
        print_evaluation(result)
