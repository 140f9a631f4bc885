"""A verdict for a terminal: a summary, or a table of every endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from porter.parity.compare import Row
from porter.parity.verdict import Verdict
from porter.report.console import console
from porter.report.lines import FURTHEST, PRECISIONS, Line, circumstances, counted, figure, reasons
from porter.text import printable

NOT_ASKED = "-"


class Column(NamedTuple):
    """A column of the table. A narrow terminal omits the columns of lowest ``worth`` first."""

    title: str
    worth: int
    cells: list[str]
    right: bool = True

    @property
    def width(self) -> int:
        """Width of its widest cell."""
        return max(map(len, (self.title, *self.cells)))


def print_verdict(verdict: Verdict, verbose: bool = False) -> None:
    """Print the verdict, the first endpoint that differs and known causes first, then agreement of the classes.

    Also the four endpoints closest to their limits or, if ``verbose``, all in the order of computation; each on the
    sample where it is furthest off.
    """
    out = console()
    said = escape(printable(f"{verdict.variant}: {verdict.sentence()}"))
    if verdict.passed:
        out.print(f"[bold green]PARITY[/]     {said}; {counted(verdict)}", soft_wrap=True)
    else:
        out.print(f"[bold red]NO PARITY[/]  {said}", soft_wrap=True)
    _print_lines(out, reasons(verdict))
    rows = verdict.worst_rows()
    shown = rows if verbose else sorted(rows, key=lambda row: -row.excess)[:FURTHEST]
    if rows and not verbose:
        which = "closest to their limits" if all(row.passed for row in rows) else "furthest beyond their limits"
        out.print(f"{which}, of {counted(verdict)} (-v shows all)", markup=False, soft_wrap=True)
    _print_table(out, shown, PRECISIONS[verdict.precision], foreign=any(row.port_name for row in rows))
    if verbose:
        out.print()
    _print_lines(out, circumstances(verdict))


def _print_lines(out: Console, lines: Iterable[Line]) -> None:
    for label, text in lines:
        out.print(f"{label:<10} {text}", markup=False, soft_wrap=True)


def _print_table(out: Console, rows: list[Row], exact: str, foreign: bool) -> None:
    """Print one line per row. Columns are omitted; rows are never cut or wrapped."""
    columns = [
        Column("endpoint", 9, [row.endpoint for row in rows], right=False),
        *([Column("in the port", 7, [row.port_name or "" for row in rows], right=False)] if foreign else []),
        Column("shape", 1, ["x".join(map(str, row.shape)) for row in rows], right=False),
        Column(exact, 8, [figure(row.function) for row in rows]),
        Column("limit", 3, [NOT_ASKED if row.function is None else f"{row.function_limit:.0e}" for row in rows]),
        Column("float32", 6, [figure(row.port and row.port.largest) for row in rows]),
        Column("reference's", 5, [figure(row.reference and row.reference.largest) for row in rows]),
        Column("rms", 7, [NOT_ASKED if row.noise_ratio is None else f"{row.noise_ratio:.1f} x" for row in rows]),
        Column("limit", 2, [f"{row.rms_limit:.0f} x" if row.port else NOT_ASKED for row in rows]),
        Column("worst on", 4, [row.sample for row in rows], right=False),
        Column("", 9, ["ok" if row.passed else "DIFFERS" for row in rows], right=False),
    ]
    while sum(column.width + 2 for column in columns) > out.width + 2 and len(columns) > 2:
        columns.remove(min(columns, key=lambda column: column.worth))
    header = "  ".join(_align(column.title, column) for column in columns)
    out.print(f"[bold]{escape(header)}[/]".rstrip(), soft_wrap=True)
    for number, row in enumerate(rows):
        cells = [escape(printable(_align(column.cells[number], column))) for column in columns]
        cells[-1] = f"[green]{cells[-1]}[/]" if row.passed else f"[bold red]{cells[-1]}[/]"
        out.print("  ".join(cells), soft_wrap=True)


def _align(cell: str, column: Column) -> str:
    return cell.rjust(column.width) if column.right else cell.ljust(column.width)
