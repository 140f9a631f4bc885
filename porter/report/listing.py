"""Checkpoints and plans as plain text columns: quick to print, easy to grep."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from porter.mapping.plan import NOT_BACKBONE, Plan

MOST_SCOPES = 8  # listed by name; a detector has 40

if TYPE_CHECKING:  # it needs torch, and listing a checkpoint does not
    from porter.mapping.stated import Stated
    from porter.parity.diff import Difference
    from porter.port import Port


def inspection_lines(found: dict[str, Any], place: str) -> Iterator[str]:
    """What ``inspect_checkpoint`` found: a summary, how many variables a conversion leaves out, and all it reads."""
    closest, used = found["closest"], found["variables"]
    yield f"read      {place} ({found['format']})"
    yield f"weights   {found['weights']}"
    if found["variant"]:
        yield f"variant   {found['variant']}, {closest['classes']} classes"
    else:
        fit = f"{closest['fitting']} of {closest['expected']} variables fit"
        yield f"variant   none fits; closest is {closest['variant']}: {fit}"
    yield f"variables {len(used)}, {sum(v['bytes'] for v in used):,} bytes"
    for reason, count in Counter(found["ignored"].values()).items():
        yield f"ignored   {count}: {reason}"
    yield ""
    yield from _columns(
        ["variable", "shape", "dtype", "bytes"],
        [[v["name"], _shape(v["shape"]), v["dtype"], f"{v['bytes']:,}"] for v in used],
    )


def plan_lines(plan: Plan) -> Iterator[str]:
    """Every step of a conversion."""
    rows = []
    for step in plan.steps:
        notes = [f"without class {step.drop_class}"] if step.drop_class is not None else []
        notes += [f"times {step.scale:.6f}"] if step.scale != 1 else []
        shapes = _shape(step.source_shape), _shape(step.target_shape)
        rows.append([step.source, shapes[0], step.axes, step.target, shapes[1], ", ".join(notes)])
    yield from _columns(["variable", "shape", "layout", "entry", "shape", ""], rows)


def port_lines(port: Port, variant_found: bool) -> Iterator[str]:
    """A conversion in short."""
    plan, opened = port.plan, port.checkpoint
    gate_folded = sum(step.scale != 1 for step in plan.steps)
    yield f"read      {opened.place} ({opened.format})"
    yield f"weights   {opened.weights}"
    yield f"variant   {plan.variant}{' (found from the shapes)' if variant_found else ''}"
    left = [name for name, reason in plan.ignored.items() if reason == NOT_BACKBONE]
    reasons = sorted(set(plan.ignored.values()) - {NOT_BACKBONE})
    ignored = f"{len(plan.ignored) - len(left)} ignored" + (f" ({', '.join(reasons)})" if reasons else "")
    yield f"mapped    {len(plan.steps)} variables, {f'{len(left)} left' if left else 'none left over'}; {ignored}"
    if left:
        yield f"left      {_by_scope(left, [step.source for step in plan.steps])}"
    yield f"classes   {plan.num_classes}{' (background dropped)' if plan.background_dropped else ''}"
    norms = ", batch norms folded" if plan.bn_folded else ""
    fold = f", {plan.source_gate:.6g} folded into {gate_folded} project weights" if gate_folded else ""
    if plan.ranges:
        yield f"ranges    {len(plan.ranges)} of quantised tensors kept"
    yield f"layout    {plan.layout}: gate {plan.gate:.6g}{fold}{norms}"
    if stated := "; ".join(_stated(port.stated)):
        yield f"stated    {stated}"
    if port.assumed:
        yield f"assumed   {', '.join(port.assumed)}: the file does not say, so these are the mapping's"


def _stated(stated: Stated) -> Iterator[str]:
    """What the file states otherwise than the mapping of its variant."""
    if stated.multiplier is not None:
        yield f"multiplier {stated.multiplier:g}"
    if stated.stem is not None:
        yield f"stem of {stated.stem.out}"
    if stated.last is not None:
        yield f"last convolution of {stated.last}"
    if stated.embedding is not None:
        yield f"embedding of {stated.embedding}"
    if spec := stated.input:
        mean, std = (", ".join(f"{one:g}" for one in dict.fromkeys(part)) for part in (spec.mean, spec.std))
        yield f"image {spec.sides[0]}x{spec.sides[1]}, mean {mean}, std {std}{', 256 levels' if spec.levels else ''}"
    if stated.epsilon is not None:
        yield f"batch norm epsilon {stated.epsilon:g}"
    if stated.output_stride is not None:
        yield f"output stride {stated.output_stride}"
    if stated.pooling:
        yield "no pooling" if stated.pooling == "none" else f"{stated.pooling} pooling"
    if stated.tail:
        yield "classifier " + ", ".join(
            f"{layer.kind} {layer.out}" if layer.out else layer.activation or layer.kind for layer in stated.tail
        )
    if stated.predictions:
        yield f"predictions by {stated.predictions}"


def difference_lines(found: Sequence[Difference]) -> Iterator[str]:
    """Every tensor that differs, furthest first, and a count of each status."""
    rows = []
    for d in sorted(found, key=lambda d: -d.max_rel):
        if d.status != "equal":
            shapes = ("-" if shape is None else _shape(shape) for shape in (d.a, d.b))
            rows.append([d.name, *shapes, d.status, f"{d.max_abs:.1e}", f"{d.max_rel:.1e}"])
    if rows:
        yield from _columns(["tensor", "A", "B", "", "max abs", "max rel"], rows)
        yield ""
    counts = Counter(d.status for d in found)
    yield ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no tensors"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _by_scope(names: Sequence[str], inside: Sequence[str]) -> str:
    """``decoder 4, aspp0 5``: counts of ``names`` by scope, relative to that of the network's variables, ``inside``."""
    scope = _shared(inside)
    counts = Counter("/".join(name.split("/")[: len(_shared([name, "/".join(scope)])) + 1]) for name in names)
    shown = [f"{scope} {count}" for scope, count in list(counts.items())[:MOST_SCOPES]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more scopes" if more else "")


def _shared(names: Sequence[str]) -> list[str]:
    """The scopes that all ``names`` have in common."""
    together = zip(*(name.split("/") for name in names), strict=False)
    return [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, together)]


def _columns(header: Sequence[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
