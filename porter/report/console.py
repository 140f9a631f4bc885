"""Terminals for rich."""

from __future__ import annotations

from rich.console import Console

PIPED_WIDTH = 160  # columns where there is no terminal to ask


def console() -> Console:
    """Standard output; wide enough for every column when it is no terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def progress_console() -> Console:
    """Standard error, so that a progress bar never mixes with results."""
    return Console(stderr=True)
