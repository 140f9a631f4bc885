"""A verdict as Markdown, for the page of a CI run."""

from __future__ import annotations

import re

from porter.parity.verdict import Verdict
from porter.report.lines import FURTHEST, PRECISIONS, circumstances, counted, reasons
from porter.text import printable


def markdown(verdict: Verdict) -> str:
    """The verdict, a table of the endpoints closest to their limits, and every other line of a summary."""
    lines = [f"### {'Parity' if verdict.passed else 'No parity'}: {_plain(verdict.variant)}", ""]
    lines.append(f"{_plain(verdict.sentence())}; {counted(verdict)}.")
    lines += ["", f"| endpoint | {PRECISIONS[verdict.precision]} | float32 | reference's | worst on | |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(verdict.worst_rows(), key=lambda row: -row.excess)[:FURTHEST]:
        noises = (None if noise is None else noise.largest for noise in (row.port, row.reference))
        figures = ["-" if value is None else f"{value:.1e}" for value in (row.function, *noises)]
        cells = [_plain(row.endpoint), *figures, _plain(row.sample), "ok" if row.passed else "**differs**"]
        lines.append(f"| {' | '.join(cells)} |")
    said = (*reasons(verdict), *circumstances(verdict))
    lines += ["", *(f"- {label}: {_plain(text)}" for label, text in said)]
    return "\n".join(lines) + "\n\n"


def markdown_error(message: str) -> str:
    """What is written instead where there is no verdict."""
    return f"### Error\n\n{_plain(message)}\n\n"


def _plain(text: str) -> str:
    """``text`` from a file as Markdown that shows exactly that."""
    return re.sub(r"[\\`*_{}\[\]()#+!|~<>&$@]", r"\\\g<0>", printable(text))
