"""``predict``, ``evaluate``: running a port on images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from porter.cli.options import FILE

preprocess_option = click.option(
    "--preprocess",
    type=click.Choice(["card", "tf", "tf2"]),
    default="card",
    show_default=True,
    help="card: as timm does; tf: as slim did, bilinear without antialiasing; tf2: as tf.image.resize.",
)


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("images", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option("--variant", metavar="NAME", help="Needed where mnv3-port did not write the artifact.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes.")
@preprocess_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, a line each.")
def predict(source: str, images: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Print the likeliest classes of IMAGES."""
    from porter.prediction import predict

    for image, guesses in predict(source, images, **options):
        if as_json:
            found = [g._asdict() | {"label": g.label and g.label._asdict()} for g in guesses]
            click.echo(json.dumps({"image": str(image), "classes": found}))
            continue
        click.echo(str(image))
        for guess in guesses:
            name = f"{guess.label.wordnet}  {guess.label.names}" if guess.label else ""
            click.echo(f"  {guess.probability:6.2%}  {guess.number:>4}  {name}".rstrip())


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("data", type=FILE)
@click.option("--variant", metavar="NAME", help="Needed where mnv3-port did not write the artifact.")
@click.option("--labels", type=FILE, metavar="CSV", help="Rows of `file,label`, where names do not tell the class.")
@click.option("--compare", metavar="OTHER", help="Another artifact or source, timm:NAME, or tf:SOURCE.")
@preprocess_option
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images at a time.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Processes that decode images.")
@click.option("--resume", type=FILE, metavar="FOLDER", help="Keep finished batches here, and go on from them.")
@click.option("--per-class", type=FILE, metavar="CSV", help="Write the counts of every class.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(source: str, data: Path, per_class: Path | None, as_json: bool, **options: Any) -> None:
    """Measure top-1 and top-5 accuracy of SOURCE on the labelled images of DATA.

    DATA is a folder of class folders named by WordNet id, or of images with the id in their names. To share the
    work among processes, machines or GPUs: torchrun --nproc-per-node N -m porter evaluate ...
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from porter.evaluation.run import evaluate
    from porter.report.console import progress_console

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    console = progress_console()
    shown = console.is_terminal and os.environ.get("RANK", "0") == "0"
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None, speed="")

        def advance(done: int, total: int) -> None:
            rate = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, speed=f"{rate:.0f} images/s" if rate else "")

        result = evaluate(source, data, progress=advance, **options)
    if result is None:  # another process has it
        return
    if per_class:
        from porter.atomic import write_bytes
        from porter.report.evaluation_table import per_class_csv

        write_bytes(per_class, per_class_csv(result), force=True)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=1))
    else:
        from porter.report.evaluation_table import print_evaluation

        print_evaluation(result)
