"""The command ``mnv3-port``: parse, call one function, print. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porter.errors import PorterError

if TYPE_CHECKING:
    from porter.conversion import Port


def _debug(context: click.Context, _: click.Parameter, on: bool) -> None:
    if on:
        context.find_root().meta["debug"] = True


DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks.")


class Commands(click.Group):
    """A group that takes ``--debug`` before or after the command."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(DEBUG)
        super().add_command(cmd, name)


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """``224`` or ``HEIGHTxWIDTH``."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        parts = str(value).split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size such as 224 or 160x193", param, ctx)
        return int(parts[0]), int(parts[-1])


@click.group(cls=Commands, params=[DEBUG], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mnv3-port", message="%(package)s %(version)s")
def cli() -> None:
    """Port TF/Models MobileNetV3 checkpoints to PyTorch, exactly, and prove it.

    Exit codes: 0 done, 1 no parity, 2 bad input, 3 a bug in mnv3-port.
    """


FILE = click.Path(path_type=Path)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command that reads a checkpoint takes."""
    for option in (
        click.option(
            "--weights",
            type=click.Choice(["auto", "ema", "raw"]),
            default="auto",
            show_default=True,
            help="Moving averages or raw weights, where both exist; auto prefers the averages.",
        ),
        click.option("--mapping", type=FILE, metavar="FILE", help="Your own mapping file."),
        click.option("--variant", metavar="NAME", help="E.g. small_075; found from the shapes when left out."),
        click.argument("checkpoint", metavar="PATH|URL"),
    ):
        command = option(command)
    return command


def port_options(command: Callable[..., None]) -> Callable[..., None]:
    """How the port is laid out."""
    for option in (
        click.option("--fold-bn", is_flag=True, help="Fold batch norms into the convolutions before them."),
        click.option("--keep-background", is_flag=True, help="Keep class 0 of slim's 1001 classes."),
        click.option(
            "--layout",
            type=click.Choice(["timm", "slim"]),
            default="timm",
            show_default=True,
            help="timm: exact where the squeeze-excite gate is 1/6; slim: weights untouched, gate 0.16667.",
        ),
    ):
        command = option(command)
    return command


@cli.command()
@source_options
@port_options
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="A .pth or .safetensors; <variant>.pth when left out.",
)
@click.option("--num-classes", type=int, metavar="N", help="Refuse a classifier of another size.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
def convert(
    checkpoint: str, variant: str | None, output: Path | None, force: bool, dry_run: bool, **options: Any
) -> None:
    """Port CHECKPOINT to PyTorch."""
    if dry_run:
        from porter.conversion import plan_port
        from porter.report.listing import plan_lines

        port = plan_port(checkpoint, variant, **options)
        click.echo("\n".join(plan_lines(port.plan)))
        _print_port(port, variant)
        return
    from porter.conversion import convert

    path, port = convert(checkpoint, output, variant, force=force, **options)
    _print_port(port, variant)
    click.echo(f"wrote     {path} ({path.stat().st_size:,} bytes)")


def _print_port(port: Port, variant: str | None) -> None:
    from porter.report.listing import port_lines

    opened = port.checkpoint
    click.echo("\n".join(port_lines(port.plan, f"{opened.place} ({opened.format})", opened.weights, variant is None)))


@cli.command()
@source_options
@port_options
@click.argument("artifact", type=FILE, required=False)
@click.option(
    "--reference",
    default="auto",
    show_default=True,
    metavar="KIND",
    help="auto, frozen (.pb), meta (.meta), keras, tflite, tf.nn, or a recorded .npz.",
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--fake-quant", is_flag=True, help="Compare the 8 bits that the source was trained for.")
@click.option("--size", "sizes", type=SizeType(), multiple=True, help="Image size; may be given several times.")
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="An image or a folder of them, instead of noise and structured images.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("--junit", type=FILE, metavar="FILE", help="Write JUnit XML as well.")
def verify(
    checkpoint: str, artifact: Path | None, variant: str | None, as_json: bool, junit: Path | None, **options: Any
) -> None:
    """Compare the port of CHECKPOINT (or ARTIFACT made from it) with TensorFlow, endpoint by endpoint."""
    from porter.parity.verify import verify

    verdict = verify(checkpoint, artifact, variant, **options)
    if junit:
        from porter.atomic import atomic_write
        from porter.report.junit import junit_xml

        with atomic_write(junit, force=True) as file:
            file.write(junit_xml(verdict))
    if as_json:
        click.echo(json.dumps(verdict.as_json(), indent=1))
    else:
        from porter.report.verdict_table import print_verdict

        print_verdict(verdict)
    sys.exit(0 if verdict.passed else 1)


@cli.command("verify-padding")
@click.option("--json", "as_json", is_flag=True, help="Print every combination as JSON.")
def verify_padding(as_json: bool) -> None:
    """Compare SAME padding with TensorFlow over a grid of sizes, kernels, strides and dilations."""
    from porter.parity.padding_grid import TOLERANCE, padding_grid

    cells = list(padding_grid())
    if as_json:
        click.echo(json.dumps([cell._asdict() | {"passed": cell.passed} for cell in cells]))
    failed = [cell for cell in cells if not cell.passed]
    if not as_json:
        for cell in failed[:20]:
            click.echo(f"DIFFERS  {cell}")
        worst = max(cell.error for cell in cells)
        click.echo(
            f"{len(cells) - len(failed)} of {len(cells)} combinations within {TOLERANCE:.0e}; furthest {worst:.1e}"
        )
    sys.exit(1 if failed else 0)


@cli.command()
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(checkpoint: str, variant: str | None, mapping: Path | None, weights: Any, as_json: bool) -> None:
    """Show what is in CHECKPOINT and which variant it is."""
    from porter.inspection import inspect_checkpoint

    inspection = inspect_checkpoint(checkpoint, variant, mapping, weights)
    if as_json:
        click.echo(json.dumps(inspection.as_json(), indent=1))
    else:
        from porter.report.listing import inspection_lines

        click.echo("\n".join(inspection_lines(inspection)))


@cli.command()
@click.argument("checkpoint", metavar="PATH|URL")
@click.option("--to", required=True, metavar="NAME|FILE", help="A variant, timm's name of one, or its state dict.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the mapping here instead of printing it.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def draft(checkpoint: str, to: str, output: Path | None, force: bool) -> None:
    """Propose a mapping for CHECKPOINT, whose variables have other names; what is uncertain is marked."""
    from porter.atomic import atomic_write
    from porter.drafting import draft

    proposal = draft(checkpoint, to)
    if output is None:
        click.echo(proposal.yaml(), nl=False)
        return
    with atomic_write(output, force) as file:
        file.write(proposal.yaml().encode())
    click.echo(f"wrote     {output} ({len(proposal.choices)} variables, {proposal.uncertain} to check)")


@cli.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("images", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option("--variant", metavar="NAME", help="Needed where mnv3-port did not write the artifact.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, a line each.")
def predict(source: str, images: tuple[Path, ...], variant: str | None, top: int, as_json: bool) -> None:
    """Print the likeliest classes of IMAGES."""
    from porter.prediction import predict

    for image, guesses in predict(source, images, variant, top):
        if as_json:
            found = [g._asdict() | {"label": g.label and g.label._asdict()} for g in guesses]
            click.echo(json.dumps({"image": str(image), "classes": found}))
            continue
        click.echo(str(image))
        for guess in guesses:
            name = f"{guess.label.wordnet}  {guess.label.names}" if guess.label else ""
            click.echo(f"  {guess.probability:6.2%}  {guess.number:>4}  {name}".rstrip())


@cli.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--tolerance", type=float, default=0.0, show_default=True, help="Of each tensor's scale.")
@click.option("--json", "as_json", is_flag=True, help="Print every tensor as JSON.")
def diff(a: str, b: str, tolerance: float, as_json: bool) -> None:
    """Compare two artifacts or checkpoints, in any format, tensor by tensor; exit code 1 where they differ."""
    from porter.differences import differences

    found = list(differences(a, b))
    if as_json:
        click.echo(json.dumps([{**d._asdict(), "within": d.within(tolerance)} for d in found]))
    else:
        from porter.report.listing import difference_lines

        click.echo("\n".join(difference_lines(found)))
    sys.exit(0 if all(d.within(tolerance) for d in found) else 1)


@cli.command("export-tf")
@click.argument("artifact", type=FILE)
@click.argument("folder", type=FILE)
@click.option("--variant", metavar="NAME", help="Needed where mnv3-port did not write the artifact.")
@click.option("--mapping", type=FILE, metavar="FILE", help="Your own mapping file.")
@click.option("--averages", is_flag=True, help="Write every variable under its moving-average name as well.")
@click.option("--force", is_flag=True, help="Overwrite a checkpoint in FOLDER.")
def export_tf(artifact: Path, folder: Path, **options: Any) -> None:
    """Write ARTIFACT into FOLDER as a TensorFlow checkpoint that slim's graph restores."""
    from porter.exporting import export_tf

    exported = export_tf(artifact, folder, **options)
    click.echo(f"wrote     {exported.prefix} ({exported.variables} variables, {exported.classes} classes)")


@cli.command()
@click.option("--variant", default="small_075", show_default=True, metavar="NAME")
@click.option("--out", type=FILE, metavar="FOLDER", help="Keep the files here.")
def demo(variant: str, out: Path | None) -> None:
    """Make a small real checkpoint of untrained weights, convert it and verify it."""
    import tempfile

    from porter.conversion import convert
    from porter.demo import write_demo_checkpoint
    from porter.parity.verify import verify
    from porter.report.verdict_table import print_verdict

    with tempfile.TemporaryDirectory(prefix="mnv3-port-demo-") as temporary:
        folder = out or Path(temporary)
        source = write_demo_checkpoint(folder, variant)
        click.echo(f"made      {source} (TensorFlow V2 checkpoint, untrained weights)\n")
        artifact = folder / f"{variant}.pth"
        click.echo(f"$ mnv3-port convert --variant {variant} {source} -o {artifact}")
        path, port = convert(source, artifact, variant, force=True)
        _print_port(port, variant)
        click.echo(f"wrote     {path} ({path.stat().st_size:,} bytes)")
        click.echo(f"\n$ mnv3-port verify --variant {variant} {source} {artifact}")
        verdict = verify(source, artifact, variant)
        print_verdict(verdict)
    sys.exit(0 if verdict.passed else 1)


@cli.command()
@click.option("--variant", required=True, metavar="NAME", help="E.g. small_075.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="The tarball's own name when left out.")
@click.option("--url", help="Fetch from here instead of Google's storage.")
@click.option("--sha256", metavar="HEX", help="Refuse any other content.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def download(variant: str, output: Path | None, url: str | None, sha256: str | None, force: bool) -> None:
    """Fetch the released tarball of a variant; goes on where an earlier attempt broke off."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from porter.download import download
    from porter.mapping.files import load_variant
    from porter.report.console import console

    address = url or load_variant(variant).url
    if not address:
        raise PorterError(f"{variant}: its mapping has no url; give --url")
    path = output or Path(address.rsplit("/", 1)[-1])
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(variant, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        download(address, path, sha256=sha256, force=force, progress=advance)
    click.echo(f"wrote     {path} ({path.stat().st_size:,} bytes)")


def main() -> None:
    """Run the command; expected errors become one line and exit code 2."""
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files go
    context_meta: dict[str, Any] = {}
    try:
        with cli.make_context("mnv3-port", sys.argv[1:]) as context:
            context_meta = context.meta
            cli.invoke(context)
    except PorterError as error:
        _fail(f"Error: {error}", 2, context_meta)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("Interrupted", 130, context_meta)
    except BrokenPipeError:  # the reader of our output, e.g. `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"Error: {error.filename or 'input or output'}: {error.strerror or error}", 2, context_meta)
    except Exception as error:
        _fail(f"Error: unexpected {type(error).__name__}: {error} (a bug; --debug shows where)", 3, context_meta)


def _fail(message: str, code: int, meta: dict[str, Any]) -> None:
    if meta.get("debug"):
        raise
    click.echo(message, err=True)
    sys.exit(code)
