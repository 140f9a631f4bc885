"""Options that several commands take, and how a port is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porter.text import printable

if TYPE_CHECKING:
    from porter.conversion import Port

FILE = click.Path(path_type=Path)


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """``224`` or ``HEIGHTxWIDTH``."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        parts = str(value).split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a size such as 224 or 160x193", param, ctx)
        return int(parts[0]), int(parts[-1])


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """A checkpoint, and how to read it."""
    return reading_options(click.argument("checkpoint", metavar="PATH|URL")(command))


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """How every command that reads a checkpoint reads it."""
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


def print_port(port: Port, variant: str | None) -> None:
    from porter.report.listing import port_lines

    opened = port.checkpoint
    echo_lines(port_lines(port.plan, f"{opened.place} ({opened.format})", opened.weights, variant is None))


def echo_lines(lines: Iterable[str]) -> None:
    """Print ``lines``, names from files in them made harmless."""
    click.echo("\n".join(map(printable, lines)))
