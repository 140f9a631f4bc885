"""Consoles of rich."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PIPED_WIDTH = 160  # columns where there is no terminal to ask


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError: the command has its own exit code for it."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output; wide enough for all columns if it is not a terminal."""
    plain = _Console(highlight=False)
    return plain if plain.is_terminal else _Console(highlight=False, width=PIPED_WIDTH)


def progress_bar(*columns: str | ProgressColumn, shown: bool = True) -> Progress:
    """A bar on standard error, so that it never mixes with results; nothing if that is no terminal."""
    errors = Console(stderr=True)
    return Progress(*columns, console=errors, transient=True, disable=not (shown and errors.is_terminal))


@contextmanager
def endpoint_progress() -> Iterator[Callable[[str, str], None]]:
    """Show progress on a terminal. Call the given function with each sample and endpoint."""
    with progress_bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        task = bar.add_task("opening both sides")

        def advance(sample: str, endpoint: str) -> None:
            bar.update(task, description=f"{sample}  {endpoint}")

        yield advance


@contextmanager
def image_progress() -> Iterator[Callable[[int, int], None]]:
    """The same for images: call it with the count done and the total. Only torchrun's first process shows it."""
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
    with progress_bar(*columns, shown=os.environ.get("RANK", "0") == "0") as bar:
        task = bar.add_task("", total=None, speed="")

        def advance(done: int, total: int) -> None:
            rate = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, speed=f"{rate:.0f} images/s" if rate else "")

        yield advance
