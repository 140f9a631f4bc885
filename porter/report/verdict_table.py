"""A verdict as a table for a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from porter.parity.compare import Row
from porter.parity.references.reference import Noise
from porter.parity.verdict import Cause, Verdict
from porter.report.console import console

NOT_ASKED = "-"


def print_verdict(verdict: Verdict) -> None:
    """The worst row of every endpoint, agreement of the classes, both answers, and causes where they are known."""
    out = console()
    out.print(_table(verdict.worst_rows(), foreign=any(row.port_name for row in verdict.rows)))
    out.print(f"\nreference  {verdict.reference}", markup=False)
    for what, names in (("not in it", verdict.missing), ("no output", verdict.unmatched), ("changed", verdict.changed)):
        if names:
            out.print(f"{what:<10} {_listed(names)}", markup=False)
    if verdict.images:
        out.print(
            f"agreement  top-1 {verdict.top1_agree}/{verdict.images}, top-5 {verdict.top5_agree}/{verdict.images}"
        )
    for line in outcome_lines(verdict):
        out.print(line)


def outcome_lines(verdict: Verdict) -> list[str]:
    """Parity or not, and why, with rich's markup."""
    said = escape(f"{verdict.variant}: {verdict.sentence()}")
    if verdict.passed:
        return [f"[bold green]PARITY[/]     {said}; {len(verdict.worst_rows())} endpoints"]
    lines = [f"[bold red]NO PARITY[/]  {said}"]
    first = verdict.first_divergence()
    if first is not None:
        theirs = f" = {first.port_name}" if first.port_name else ""
        where = f"{first.endpoint}{theirs} on {first.sample}, worst at index {list(first.worst)} (N, H, W, C)"
        lines.append(f"first      {escape(where)}")
    return lines + [f"cause      {escape(cause_text(cause))}" for cause in verdict.causes]


def cause_text(cause: Cause) -> str:
    """A cause, with both numbers."""
    return f"{cause.what}: with it, the logits' difference is {cause.after:.1e}, without {cause.before:.1e}"


def _table(rows: list[Row], foreign: bool) -> Table:
    table = Table("endpoint", box=None, header_style="bold")
    if foreign:
        table.add_column("in the port")
    table.add_column("shape")
    for name in ("float64", "limit", "float32", "reference's", "rms", "limit"):
        table.add_column(name, justify="right")
    table.add_column("worst on")
    table.add_column("")
    for row in rows:
        cells = [row.endpoint, *([row.port_name or ""] if foreign else []), "x".join(map(str, row.shape))]
        asked = row.function is not None
        cells += [_number(row.function), f"{row.function_limit:.0e}" if asked else NOT_ASKED]
        cells += [
            _largest(row.port),
            _largest(row.reference),
            _ratio(row),
            f"{row.rms_limit:.0f} x" if row.port else "-",
        ]
        mark = "[green]ok[/]" if row.passed else "[bold red]DIFFERS[/]"
        table.add_row(*(escape(cell) for cell in cells), escape(row.sample), mark)
    return table


def _number(value: float | None) -> str:
    return NOT_ASKED if value is None else f"{value:.1e}"


def _largest(noise: Noise | None) -> str:
    return _number(None if noise is None else noise.largest)


def _ratio(row: Row) -> str:
    return NOT_ASKED if row.noise_ratio is None else f"{row.noise_ratio:.1f} x"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
