"""``release``: making releases and checking them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from porter.commands.options import (
    FILE,
    check_outputs,
    class_names_option,
    echo_lines,
    fake_quant_option,
    reading_options,
    refuse_ignored,
    report_options,
    reporting,
)
from porter.errors import PorterError

if TYPE_CHECKING:
    from porter.parity.verdict import Verdict
    from porter.releases.publish import Released


@click.command()
@click.argument("path", metavar="CHECKPOINT|ARTIFACT|FOLDER")
@click.option("--out", type=FILE, metavar="FOLDER", help="Write the release here; with --all, each below it.")
@click.option("--all", "every", is_flag=True, help="Release every tarball and folder in FOLDER.")
@click.option("--check", is_flag=True, help="Check FOLDER, a release, instead of making one.")
@click.option("--against", metavar="CHECKPOINT", help="With --check: compare with this checkpoint, not the record.")
@report_options
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="With --all: number of processes.")
@reading_options
@fake_quant_option
@click.option("--keep-background", is_flag=True, help="Keep class 0 of slim's 1001 classes.")
@click.option("--reference", default="auto", metavar="KIND", help="As for verify.")
@click.option("--name", metavar="NAME", help="The release's name. With --sha256: timm's name.")
@click.option("--license", metavar="ID", help="The weights' licence. With --sha256: apache-2.0.")
@click.option("--dataset", metavar="ID", help="The training data. With --sha256: imagenet-1k.")
@click.option(
    "--sha256",
    metavar="HEX",
    help="The digest of CHECKPOINT, Google's tarball, from a place that you trust: the card says that it is Google's.",
)
@class_names_option
@click.option(
    "--evaluate",
    "evaluate_on",
    type=click.Path(path_type=Path, exists=True),
    metavar="DATA",
    help="Put the accuracy on DATA in the card; with --all, in each card.",
)
@click.option("--onnx", is_flag=True, help="Also write an ONNX model (batch of any size).")
@click.option("--tflite", is_flag=True, help="Also write a .tflite; of integers if the port computes 8 bits.")
@click.option("--pte", is_flag=True, help="Also write an ExecuTorch program for phones (XNNPACK).")
@click.option("--pt2", is_flag=True, help="Also write a torch.export program.")
@click.option("--torchscript", is_flag=True, help="Also write a TorchScript module.")
@click.option("--force", is_flag=True, help="Replace an earlier release.")
def release(
    path: str,
    out: Path | None,
    every: bool,
    check: bool,
    against: str | None,
    junit: Path | None,
    markdown: Path | None,
    jobs: int | None,
    **options: Any,
) -> None:
    """Convert and verify CHECKPOINT and, on parity, write a folder to publish: weights, card, checksums, report.

    ARTIFACT is a port, one that you trained further, say: a .pth or .safetensors, or a release. TensorFlow then
    computes its weights as export-tf writes them.
    """
    if check:
        if out is not None:
            raise click.UsageError("--check writes nothing; leave out --out")
        refuse_ignored("--check makes no release", "every", "jobs", *options)
        from porter.releases.check import check_release

        check_outputs(junit, markdown)
        with reporting(f"release --check {path}", junit, markdown) as verdicts:
            for folder in _releases(Path(path)):
                verdicts.append(verdict := check_release(folder, against))
                echo_lines([f"ok        {folder}: {verdict.variant}, {_distance(verdict)}"])
        return
    if out is None:
        raise click.UsageError("--out FOLDER is needed")
    refuse_ignored("it is for --check", "against", "junit", "markdown")
    if not every:
        refuse_ignored("it is for --all", "jobs")
    from porter.photos.labels import read_class_names
    from porter.releases.exports import Export
    from porter.releases.publish import Publication, release
    from porter.report.console import endpoint_progress

    names = options.pop("class_names")
    options["publication"] = Publication(
        name=options.pop("name"),
        license=options.pop("license"),
        dataset=options.pop("dataset"),
        class_names=read_class_names(names) if names else (),
        evaluate_on=options.pop("evaluate_on"),
        sha256=options.pop("sha256"),
        exports=tuple(kind for kind in get_args(Export) if options.pop(kind)),
    )
    if every:
        sys.exit(_release_all(Path(path), out, jobs, options))
    with endpoint_progress() as progress:
        released = release(path, out, progress=progress, **options)
    _print(released)


def _release_all(folder: Path, out: Path, jobs: int | None, options: dict[str, Any]) -> int:
    from porter.releases.batch import release_all
    from porter.report.console import progress_bar

    refuse_ignored("--all finds the variants itself", "variant", "mapping", "name")
    refuse_ignored("a digest is of one tarball", "sha256")
    del options["variant"]
    code = 0
    with progress_bar() as bar:
        task = bar.add_task("release", total=None)
        for outcome in release_all(folder, out, jobs, lambda count: bar.update(task, total=count), **options):
            bar.advance(task)
            if outcome.released:
                _print(outcome.released)
            elif outcome.error:
                click.echo(f"Error: {outcome.error.for_command()}", err=True)
                code = max(code, outcome.error.exit_code)
    return code


def _releases(folder: Path) -> list[Path]:
    """``folder`` if it is a release, else the releases in it."""
    from porter.artifacts.artifact import CHECKSUMS

    if not folder.is_dir():
        raise PorterError(f"{folder}: no such folder")
    if (folder / CHECKSUMS).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{CHECKSUMS}")) or [folder]


def _print(released: Released) -> None:
    echo_lines([f"released  {released.folder}: {released.variant}, {_distance(released.verdict)}"])
    for kind, error in released.exports.items():
        echo_lines([f"  {kind:<11} logits within {error:.1e} of their scale"])


def _distance(verdict: Verdict) -> str:
    return f"{len(verdict.worst_rows())} endpoints, {verdict.sentence()}"
