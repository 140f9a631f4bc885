"""A verdict as a table for a terminal."""

from __future__ import annotations

from rich.table import Table

from porter.parity.verdict import Verdict
from porter.report.console import console


def print_verdict(verdict: Verdict) -> None:
    """The worst row of every endpoint, agreement of the classes, and the outcome."""
    out = console()
    table = Table("endpoint", "shape", box=None, header_style="bold")
    for name in ("max abs", "max rel", "mean abs", "1 - cosine", "limit"):
        table.add_column(name, justify="right")
    table.add_column("worst on")
    table.add_column("")
    for row in verdict.worst_rows():
        numbers = (row.max_abs, row.max_rel, row.mean_abs, 1 - row.cosine, row.tolerance)
        mark = "[green]ok[/]" if row.passed else "[bold red]DIFFERS[/]"
        table.add_row(row.endpoint, "x".join(map(str, row.shape)), *(f"{n:.1e}" for n in numbers), row.sample, mark)
    out.print(table)
    out.print(f"\nreference  {verdict.reference}", markup=False)
    out.print(f"agreement  top-1 {verdict.top1_agree}/{verdict.images}, top-5 {verdict.top5_agree}/{verdict.images}")
    first = verdict.first_divergence()
    if first is None:
        worst = max(verdict.worst_rows(), key=lambda row: row.max_rel)
        out.print(
            f"[bold green]PARITY[/]     {verdict.variant}: all {len(verdict.worst_rows())} endpoints within limits; "
            f"furthest {worst.endpoint}, {worst.max_rel:.1e} of its scale"
        )
    else:
        out.print(
            f"[bold red]NO PARITY[/]  {verdict.variant}: first differs at {first.endpoint} on {first.sample}: "
            f"{first.max_rel:.1e} of its scale (limit {first.tolerance:.0e}), worst at index {list(first.worst)}"
        )
