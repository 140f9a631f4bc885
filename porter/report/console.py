"""Terminals for rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PIPED_WIDTH = 160  # columns where there is no terminal to ask


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, for which the command has an exit code of its own."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output; wide enough for every column if it is not a terminal."""
    plain = _Console(highlight=False)
    return plain if plain.is_terminal else _Console(highlight=False, width=PIPED_WIDTH)


def progress_console() -> Console:
    """Standard error, so that a progress bar never mixes with results."""
    return Console(stderr=True)


@contextmanager
def endpoint_progress() -> Iterator[Callable[[str, str], None]]:
    """Show progress on a terminal. The function given is called with each sample and endpoint."""
    errors = progress_console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("opening both sides")

        def advance(sample: str, endpoint: str) -> None:
            bar.update(task, description=f"{sample}  {endpoint}")

        yield advance
