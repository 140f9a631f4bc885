"""``verify``, ``verify-padding``: comparing a port with TensorFlow."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from porter.commands.options import (
    FILE,
    OUTPUT,
    SizeType,
    check_outputs,
    device_option,
    echo_json,
    echo_lines,
    port_options,
    refuse_ignored,
    report_options,
    reporting,
    source_options,
)
from porter.text import json_text


@click.command()
@source_options
@port_options
@click.argument("artifact", metavar="[PORT]", required=False)
@click.option("--weights-file", type=FILE, metavar="FILE", help="The state dict for a PORT that is timm:NAME.")
@click.option(
    "--reference",
    default="auto",
    metavar="KIND",
    help="auto, frozen (.pb), meta (.meta), saved_model, keras, tflite, tf.nn, or a recorded .npz.",
)
@click.option(
    "--dtype",
    type=click.Choice(["both", "float64", "float32"]),
    default="both",
    help="float64 asks whether it is the same function, float32 whether it is as exact as TensorFlow's float32.",
)
@click.option("--deploy", "deployed", is_flag=True, help="Compare the inference form, porter.deploy.")
@device_option
@click.option("--train", is_flag=True, help="Compare a step of training: statistics, outputs, loss, gradients.")
@click.option("--size", "sizes", type=SizeType(), multiple=True, help="Image size; may be given several times.")
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="An image or a folder of them, instead of noise and structured images.",
)
@click.option("--seed", type=int, default=0, help="Seed of the noise.")
@click.option(
    "--diagnose",
    type=click.Choice(["quick", "all"]),
    default="quick",
    help="How long to look for known mistakes if there is no parity: 10 seconds, or until all are tried.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print every endpoint, not a summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@report_options
@click.option("--html", type=OUTPUT, metavar="FILE|-", help="Also write a report: one page that needs no network.")
def verify(
    checkpoint: str,
    artifact: str | None,
    verbose: bool,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Compare a port of CHECKPOINT with TensorFlow, endpoint by endpoint: the same function, and as exact?

    PORT is the port to check; without it, what `convert` would write is checked. A .pth or .safetensors (a state
    dict of our class or timm's), a release's folder, the URL of either, timm:NAME with --weights-file, an .onnx or .pt2
    file, another TensorFlow source, or package.module:callable or file.py:callable that returns an nn.Module. The last
    two run that code.
    """
    from porter.atomic import write_bytes
    from porter.parity.candidates.callables import is_callable, run_apart

    check_outputs(junit, markdown, html, as_json=as_json)
    if options["images"]:
        refuse_ignored("--images are no noise", "seed")
    died = run_apart(artifact) if artifact and is_callable(artifact) and "torch" not in sys.modules else None
    with reporting(f"verify {checkpoint}", junit, markdown) as verdicts:
        if died:
            raise died
        from porter.parity.evidence import Evidence
        from porter.parity.verify import verify
        from porter.report.console import endpoint_progress

        evidence = Evidence() if html else None
        with endpoint_progress() as progress, redirect_stdout(sys.stderr):  # for what a port's code prints
            verdict = verify(checkpoint, artifact, evidence=evidence, progress=progress, **options)
        verdicts.append(verdict)
    if html and evidence:
        from porter.report.html import parity_html

        write_bytes(html, parity_html(verdict, evidence), force=True)
    if as_json:
        echo_json(verdict.as_json())
    else:
        from porter.report.verdict_table import print_verdict

        print_verdict(verdict, verbose)
    sys.stdout.flush()  # a closed pipe is not a verdict
    sys.exit(0 if verdict.passed else 1)


@click.command("verify-padding")
@click.option("--json", "as_json", is_flag=True, help="Print every combination as JSON.")
def verify_padding(as_json: bool) -> None:
    """Compare SAME padding with TensorFlow over a grid of sizes, kernels, strides and dilations."""
    from porter.parity.padding_grid import TOLERANCE, padding_grid

    cells = list(padding_grid())
    failed = [cell for cell in cells if not cell.passed]
    if as_json:
        click.echo(json_text([cell._asdict() | {"passed": cell.passed} for cell in cells]))
    else:
        for cell in failed[:20]:
            echo_lines([f"DIFFERS  {cell}"])
        worst = max(cell.error for cell in cells)
        within = len(cells) - len(failed)
        echo_lines([f"{within} of {len(cells)} combinations within {TOLERANCE:.0e}; furthest {worst:.1e}"])
    sys.stdout.flush()
    sys.exit(1 if failed else 0)
