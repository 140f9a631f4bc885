"""Options that several commands take, and how a port is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from porter.errors import PorterError
from porter.text import SCHEMA, json_text, printable

if TYPE_CHECKING:
    from porter.mapping.options import PortOptions
    from porter.parity.verdict import Verdict
    from porter.port import Port

FILE = click.Path(path_type=Path)


class OutputType(click.Path):
    """A file to write; ``-`` is standard output."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Path("/dev/stdout") if value == "-" else super().convert(value, param, ctx)


OUTPUT = OutputType(path_type=Path)


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """``224`` or ``HEIGHTxWIDTH``."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        parts = str(value).split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size such as 224 or 160x193", param, ctx)
        return int(parts[0]), int(parts[-1])


class VariantType(click.ParamType):  # type: ignore[type-arg]
    """A variant's name, completed by the shell; your own mapping may have any name."""

    name = "NAME"

    def shell_complete(self, _: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The variants that begin with ``incomplete``."""
        from porter.mapping.files import list_variants

        return [CompletionItem(variant) for variant in list_variants() if variant.startswith(incomplete)]


VARIANT = VariantType()
mapping_option = click.option("--mapping", type=FILE, metavar="FILE", help="Your own mapping file.")
fake_quant_option = click.option(
    "--fake-quant/--no-fake-quant",
    default=None,
    help="Whether to compute the 8 bits that the source was trained for. Default: if it has their ranges.",
)
class_names_option = click.option(
    "--class-names", type=FILE, metavar="FILE", help="The classes' names, one per line, in order."
)
device_option = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps ...")
skip_option = click.option("--skip-unreadable", is_flag=True, help="Skip images that cannot be read, and list them.")

preprocess_option = click.option(
    "--preprocess",
    type=click.Choice(["card", "tf", "tf2"]),
    default="card",
    help="card: as timm does; tf: as slim did, bilinear without antialiasing; tf2: as tf.image.resize.",
)


def refuse_ignored(because: str, *ignored: str) -> None:
    """Raise PorterError if the command line has one of the options ``ignored``; ``because`` says why."""
    from click.core import ParameterSource

    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name in ignored and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise PorterError(f"{option.opts[0]} has no meaning here: {because}")


def claim_outputs(*outputs: Path | None, as_json: bool = False) -> None:
    """If one of ``outputs`` is standard output, print everything else on standard error from now on.

    Raises UsageError if two outputs would go to standard output, or an output is also an input or another output.
    """
    from porter.atomic import descriptor_of, is_stream

    claims = [output for output in outputs if output is not None and descriptor_of(output) == 1]
    if claims and len(claims) + as_json > 1:
        raise click.UsageError("only one output can go to standard output; name files for the others")
    if claims:
        click.get_current_context().with_resource(redirect_stdout(sys.stderr))
    named = [os.path.realpath(path) for path in _paths(click.get_current_context().params.values())]
    for output in filter(None, outputs):
        if not is_stream(output) and named.count(os.path.realpath(output)) > 1:
            raise click.UsageError(f"{output}: is named twice; an output can be no input and no other output")


def check_outputs(*outputs: Path | None, force: bool = True, as_json: bool = False) -> None:
    """Raise PorterError or UsageError, before any work, if one of ``outputs`` cannot be written.

    See ``claim_outputs`` for standard output and for names given twice.
    """
    from porter.atomic import check_output

    claim_outputs(*outputs, as_json=as_json)
    for output in filter(None, outputs):
        check_output(output, force)


def _paths(values: Iterable[Any]) -> Iterator[str]:
    """All of a command's arguments and options that may be paths."""
    for value in values:
        if isinstance(value, (str, Path)):
            yield str(value)
        elif isinstance(value, tuple):
            yield from _paths(value)


def size_text(path: Path) -> str:
    """The size of the written file ``path``."""
    return f"{path.stat().st_size:,} bytes" if path.is_file() else "not a regular file"


def taken_port_options(options: dict[str, Any]) -> PortOptions:
    """Remove the port's options from ``options`` and return them as one value."""
    from dataclasses import fields

    from porter.mapping.options import PortOptions

    names = [field.name for field in fields(PortOptions) if field.name in options]
    return PortOptions(**{name: options.pop(name) for name in names})


def _together(*options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One decorator for all of ``options``; the help lists the last one first."""
    return lambda command: reduce(lambda done, option: option(done), options, command)


_READING = (
    click.option(
        "--weights",
        type=click.Choice(["auto", "ema", "raw"]),
        default="auto",
        help="Moving averages or raw weights, where both exist; auto prefers the averages, except in a SavedModel "
        "whose graph has the raw weights.",
    ),
    mapping_option,
    click.option("--variant", type=VARIANT, help="E.g. small_075, or timm's name. Default: found from the file."),
)
reading_options = _together(*_READING)  # for commands that read a checkpoint
source_options = _together(click.argument("checkpoint", metavar="PATH|URL"), *_READING)
model_options = _together(device_option, fake_quant_option, class_names_option, *_READING)  # ... and run a model
port_options = _together(  # how a port is laid out
    click.option("--backbone", is_flag=True, help="Take the network inside a larger model."),
    fake_quant_option,
    click.option("--fold-bn", is_flag=True, help="Fold batch norms into the convolutions before them."),
    click.option("--keep-background", is_flag=True, help="Keep class 0 of slim's 1001 classes."),
    click.option(
        "--layout",
        type=click.Choice(["timm", "slim"]),
        default="timm",
        help="timm: exact where the squeeze-excite gate is 1/6; slim: weights untouched, gate 0.16667.",
    ),
)


report_options = _together(
    click.option("--markdown", type=OUTPUT, metavar="FILE|-", help="Also write a short table in Markdown."),
    click.option("--junit", type=OUTPUT, metavar="FILE|-", help="Also write JUnit XML; an error is a case in it, too."),
)


@contextmanager
def reporting(what: str, junit: Path | None, markdown: Path | None) -> Iterator[list[Verdict]]:
    """Write ``junit`` and ``markdown`` of the verdicts that are put into the list, or of a PorterError."""
    from porter.atomic import write_bytes
    from porter.report import ci

    verdicts: list[Verdict] = []
    try:
        yield verdicts
    except PorterError as error:
        message = error.for_command()
        if junit:
            write_bytes(junit, ci.junit_error(what, message, failed=error.exit_code == 1), force=True)
        if markdown:
            write_bytes(markdown, ci.markdown_error(message).encode(), force=True)
        raise
    if junit:
        write_bytes(junit, ci.junit_xml(*verdicts), force=True)
    if markdown:
        write_bytes(markdown, "".join(map(ci.markdown, verdicts)).encode(), force=True)


def print_port(port: Port, variant: str | None) -> None:
    from porter.artifacts.source import StoredPort
    from porter.report.listing import port_lines

    echo_lines(port_lines(port, variant is None and not isinstance(port.checkpoint, StoredPort)))


def echo_json(values: dict[str, Any]) -> None:
    """Print ``values``, the object of ``--json``."""
    click.echo(json_text({"schema": SCHEMA} | values, indent=1))


def echo_lines(lines: Iterable[str]) -> None:
    """Print ``lines``, with control characters escaped."""
    click.echo("\n".join(map(printable, lines)))
