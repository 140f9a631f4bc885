"""``convert``, ``draft``, ``export-tf``: from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porter.commands.options import (
    FILE,
    OUTPUT,
    VARIANT,
    check_outputs,
    claim_outputs,
    echo_lines,
    mapping_option,
    port_options,
    print_port,
    reading_options,
    size_text,
    taken_port_options,
)

if TYPE_CHECKING:
    from porter.mapping.options import PortOptions


@click.command()
@reading_options
@click.argument("checkpoint", metavar="PATH|URL...", nargs=-1, required=True)
@port_options
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="A .pth, .safetensors, .onnx or .tflite (default: <variant>.pth); a folder for several.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["pth", "safetensors", "onnx", "tflite"]),
    default="pth",
    help="Format of several checkpoints.",
)
@click.option(
    "--boxes", is_flag=True, help="For a detector's .onnx or .tflite: decode and suppress boxes in the graph."
)
@click.option("--num-classes", type=int, metavar="N", help="Refuse a classifier of another size.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
def convert(
    checkpoint: tuple[str, ...],
    output: Path | None,
    form: str,
    boxes: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Port CHECKPOINT to PyTorch; several at once into a folder (-o).

    A port is a source, too: a .pth or .safetensors that you trained further becomes an .onnx, say. Several files of one
    checkpoint, e.g. from the shell pattern run/model-*, count as one.
    """
    claim_outputs(output)
    into_folder = _into_folder(checkpoint, output)
    if len(checkpoint) > 1:
        from porter.atomic import check_folder
        from porter.exports.convert import one_each

        if output is not None:
            check_folder(output if into_folder else output.parent)
        checkpoint = tuple(one_each(checkpoint, options["weights"]))
    if len(checkpoint) > 1 or (into_folder and not dry_run):
        if output is None or dry_run or boxes:
            raise click.UsageError("several checkpoints need -o FOLDER, and take neither --dry-run nor --boxes")
        _convert_all(checkpoint, output, f".{form}", force, taken_port_options(options))
        return
    if form != "pth":
        raise click.UsageError("--format is for several checkpoints; name the output of one (-o)")
    variant = options["variant"]
    if dry_run:
        from porter.port import plan_port
        from porter.report.listing import plan_lines

        port = plan_port(checkpoint[0], taken_port_options(options))
        echo_lines(plan_lines(port.plan))
        print_port(port, variant)
        return
    from porter.exports.convert import convert

    path, port = convert(checkpoint[0], output, boxes=boxes, force=force, **options)
    print_port(port, variant)
    echo_lines([f"wrote     {path} ({size_text(path)})"])


def _into_folder(given: tuple[str, ...], output: Path | None) -> bool:
    """Whether ``output`` is a folder for the checkpoints ``given``, which may be names of one checkpoint."""
    from click.core import ParameterSource

    from porter.exports.files import OUTPUT_SUFFIXES

    by_format = click.get_current_context().get_parameter_source("form") is ParameterSource.COMMANDLINE
    if output is None or not (by_format or len(given) > 1):
        return False
    return output.is_dir() or output.suffix not in OUTPUT_SUFFIXES


def _convert_all(checkpoints: tuple[str, ...], folder: Path, suffix: str, force: bool, options: PortOptions) -> None:
    from porter.exports.convert import convert_all
    from porter.report.console import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("convert", total=len(checkpoints))
        for path, port in convert_all(checkpoints, folder, options, suffix=suffix, force=force):
            bar.advance(task)
            echo_lines([f"wrote     {path} ({port.mapping.variant}, {size_text(path)})"])


@click.command()
@click.argument("checkpoint", metavar="PATH|URL")
@click.option("--to", required=True, metavar="NAME|FILE", help="A variant, timm's name of one, or its state dict.")
@click.option("-o", "--output", type=OUTPUT, metavar="FILE|-", help="Write the mapping here instead of printing it.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def draft(checkpoint: str, to: str, output: Path | None, force: bool) -> None:
    """Propose a mapping for CHECKPOINT, whose variables have other names; uncertain lines are marked."""
    from porter.atomic import write_bytes
    from porter.draft import draft

    if force and not output:
        raise click.UsageError("--force is for the file of -o")
    check_outputs(output, force=force)
    proposal = draft(checkpoint, to)
    if output is None:
        click.echo(proposal.yaml(), nl=False)
        return
    write_bytes(output, proposal.yaml().encode(), force)
    echo_lines([f"wrote     {output} ({len(proposal.choices)} variables, {proposal.uncertain} to check)"])


@click.command("export-tf")
@click.argument("artifact")
@click.argument("folder", type=FILE)
@click.option("--variant", type=VARIANT, help="Needed if mnv3-port did not write the artifact.")
@mapping_option
@click.option("--averages", is_flag=True, help="Write every variable under its moving-average name as well.")
@click.option("--force", is_flag=True, help="Overwrite a checkpoint in FOLDER.")
def export_tf(artifact: str, folder: Path, **options: Any) -> None:
    """Write ARTIFACT into FOLDER as a TensorFlow checkpoint that slim's graph restores.

    The released graph has 1,001 classes: a port of 1,000 gets its background class back. A port with another number of
    classes needs a graph of that number.
    """
    from porter.exports.export_tf import export_tf

    exported = export_tf(artifact, folder, **options)
    echo_lines([f"wrote     {exported.prefix} ({exported.variables} variables, {exported.classes} classes)"])
