"""What a verdict says beside its table of endpoints: the same lines in every report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from porter.parity.references.reference import Precision
from porter.parity.verdict import Cause, Verdict
from porter.text import listed, printable

# What the first question compares: a recorded reference may hold float32 alone
PRECISIONS: dict[Precision, str] = {"float64": "float64", "float32": "to record", "levels": "levels"}
FURTHEST = 4  # endpoints in a summary, which has ten lines
MOST = 8  # names on a line


class Line(NamedTuple):
    """A label of at most ten characters, and printable text."""

    label: str
    text: str


def figure(value: float | None) -> str:
    """A distance or error, ``-`` for one that was not asked for."""
    return "-" if value is None else f"{value:.1e}"


def counted(verdict: Verdict) -> str:
    """How many endpoints, or values of a step of training, were compared."""
    return f"{len(verdict.worst_rows())} {'values' if verdict.training else 'endpoints'}"


def reasons(verdict: Verdict) -> Iterator[Line]:
    """The first endpoint that differs, what explains it, and what was assumed."""
    first = verdict.first_divergence()
    if first is not None:
        theirs = f" = {first.port_name}" if first.port_name else ""
        axes = "" if verdict.training else " (N, H, W, C)"
        where = f"{first.endpoint}{theirs} on {first.sample}, worst at index {list(first.worst)}{axes}"
        yield Line("first", printable(where))
    for cause in verdict.causes:
        yield Line("cause", printable(_cause(cause)))
    if verdict.untried:
        yield Line("not tried", printable(f"{verdict.untried}: --diagnose all"))
    if verdict.assumed:
        yield Line("assumed", printable(f"{', '.join(verdict.assumed)}: neither side states them"))


def circumstances(verdict: Verdict) -> Iterator[Line]:
    """What was compared with what, what was not, and whether the classes agree."""
    yield Line("reference", printable(verdict.reference))
    if verdict.received and not verdict.received.startswith("reference: the same"):
        yield Line("received", printable(verdict.received))
    changed = [f"{n} ({verdict.variables[n]})" if n in verdict.variables else n for n in verdict.changed]
    for what, names in (("not in it", verdict.missing), ("not matched", verdict.unmatched), ("changed", changed)):
        if names:
            yield Line(what, listed(names, MOST))
    for said in verdict.remarks:
        yield Line("remark", printable(said))
    if verdict.images:
        agree = f"top-1 {verdict.top1_agree}/{verdict.images}, top-5 {verdict.top5_agree}/{verdict.images}"
        yield Line("agreement", agree)


def _cause(cause: Cause) -> str:
    """A cause, with both distances if its mistakes were made."""
    if cause.after is None or cause.before is None:
        return cause.what
    return f"{cause.what}: with it, {cause.values} difference is {cause.after:.1e}, without {cause.before:.1e}"
