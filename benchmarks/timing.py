"""Timing that a busy machine does not skew: candidates take turns, medians and quartiles count."""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared" / "checkpoints"


class Timed(NamedTuple):
    """Seconds of one candidate: median, first and third quartile."""

    median: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return dict(self._asdict())


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, warm: int = 1, calls: int = 1
) -> dict[str, Timed]:
    """Time every candidate in turn, ``rounds`` times, in another order each time.

    A turn is ``warm`` calls unmeasured, which bring the candidate's own code and data back into the caches, then
    ``calls`` measured ones.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffle = list(candidates.items()), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name, run in order:
            seconds[name] += turn(run, warm, calls)
    return {name: timed(measured) for name, measured in seconds.items()}


def turn(run: Callable[[], object], warm: int, calls: int) -> list[float]:
    """The seconds of each of ``calls`` calls, after ``warm`` that are not measured."""
    for _ in range(warm):
        run()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def timed(seconds: list[float]) -> Timed:
    """The median and quartiles of at least one measurement."""
    if len(seconds) == 1:
        return Timed(seconds[0], seconds[0], seconds[0])
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timed(median, low, high)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_result(name: str, content: object, folder: Path | None) -> None:
    """``<folder>/<name>.json``; nothing where no folder is given."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
