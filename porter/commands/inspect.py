"""``inspect``, ``diff``: looking into files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from porter.commands.options import echo_json, echo_lines, reading_options, refuse_ignored
from porter.text import json_text


@click.command()
@click.argument("source", metavar="PATH|URL")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(source: str, variant: str | None, mapping: Path | None, weights: Any, as_json: bool) -> None:
    """Show what is in a checkpoint, an artifact or a release's folder, and which variant it is."""
    from porter.artifacts.artifact import find_artifact

    file = find_artifact(source)
    if file is not None:
        refuse_ignored(f"{source} is an artifact, and is shown as it is", "variant", "mapping", "weights")
        from porter.artifacts.inspection import artifact_lines, inspect_artifact

        found = inspect_artifact(file)
        lines = artifact_lines(found)
    else:
        from porter.report.inspection import inspect_checkpoint
        from porter.report.listing import inspection_lines
        from porter.sources import open_checkpoint

        opened = open_checkpoint(source, weights)
        found = inspect_checkpoint(opened, variant, mapping)
        lines = inspection_lines(found, opened.place)
    if as_json:
        echo_json(found)
    else:
        echo_lines(lines)


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--tolerance", type=float, default=0.0, help="Allowed difference, over each tensor's scale.")
@click.option("--json", "as_json", is_flag=True, help="Print every tensor as JSON.")
def diff(a: str, b: str, tolerance: float, as_json: bool) -> None:
    """Compare two artifacts or checkpoints, in any format, tensor by tensor; exit code 1 where they differ."""
    from porter.parity.diff import differences

    found = list(differences(a, b))
    if as_json:
        click.echo(json_text([{**d._asdict(), "within": d.within(tolerance)} for d in found]))
    else:
        from porter.report.listing import difference_lines

        echo_lines(difference_lines(found))
    sys.stdout.flush()
    sys.exit(0 if all(d.within(tolerance) for d in found) else 1)
