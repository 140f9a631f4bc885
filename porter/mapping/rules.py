"""Expanding a mapping's rules over its network: every variable that is expected, and where it goes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from porter.mapping.axes import rank
from porter.mapping.schema import BlockRule, Rule, VariantMapping
from porter.network.network import Block, Network
from porter.network.torchvision_names import torchvision_names


class Expected(NamedTuple):
    """One variable a checkpoint should have.

    ``shape`` is TensorFlow's; ``class_axis`` its axis of classes, or None; ``folds_gate`` tells that the
    squeeze-excite constant may be folded into it, ``gate_shift`` that relu6(x + 3)'s 3 may be in it.
    """

    source: str
    target: str
    axes: str
    shape: tuple[int, ...]
    class_axis: int | None = None
    folds_gate: bool = False
    gate_shift: bool = False


# How far above the network's scope those of heads lie: a segmenter's beside it, a detector's beside its extractor
SCOPES_ABOVE = {"segmentation": 1, "predictor": 2}
_latest: deque[tuple[VariantMapping, Network, int, tuple[Expected, ...]]] = deque(maxlen=4)
NEXT = re.compile(r"\{next_(\w+)\}")


class Placeholders:
    """Values of the placeholders in a mapping's names.

    ``{next_x}`` counts the counter x up, from 0, and ``{x}`` is the same number again.
    """

    def __init__(self) -> None:
        self.names: dict[str, str | int] = {}

    def fill(self, template: str) -> str:
        """``template`` with every placeholder filled in, counters counted up first. Raises KeyError, ValueError."""
        for counter in NEXT.findall(template):
            self.names[counter] = int(self.names.get(counter, -1)) + 1
        return NEXT.sub(r"{\1}", template).format_map(self.names)


def expected_variables(mapping: VariantMapping, network: Network, classes: int) -> list[Expected]:
    """All expected variables in the order of computation; 0 ``classes``: none of a classifier.

    Raises ValueError (``key: what is wrong``) on a shape symbol or placeholder that does not exist.
    """
    for remembered in list(_latest):  # a copy: another thread may append. A training run asks the same again and again
        if remembered[0] is mapping and remembered[1] == network and remembered[2] == classes:
            return list(remembered[3])
    expected = _expanded(mapping, network, classes)
    _latest.append((mapping, network, classes, tuple(expected)))
    return expected


def _expanded(mapping: VariantMapping, network: Network, classes: int) -> list[Expected]:
    known = {rule.source for section in msgspec.structs.asdict(mapping.rules).values() for rule in _plain(section)}
    for name in mapping.names:
        if name not in known:
            raise ValueError(f"names.{name}: is the `from` of no rule")
    expected: list[Expected] = []
    names = Placeholders()
    for section, known_names, symbols, gated in _sections(network, classes):
        names.names |= known_names
        expected += _expand(mapping, section, names, symbols, gated)
    if network.inner_map is not None:
        expected = [_as_torchvision(want, torchvision_names(network)) for want in expected]
    if not mapping.variables:
        return expected
    below = f"{mapping.scope}/" if mapping.scope else ""
    own = [mapping.variables.get(want.source.removeprefix(below), want.source) for want in expected]
    return [want._replace(source=source) for want, source in zip(expected, own, strict=True)]


def _as_torchvision(want: Expected, names: Mapping[str, str]) -> Expected:
    module, _, part = want.target.rpartition(".")
    return want._replace(target=f"{names.get(module, module)}.{part}")


def module_outputs(mapping: VariantMapping, network: Network, classes: int) -> dict[str, list[str]]:
    """Module -> the names that its output may have in the source, as the mapping's ``outputs`` tell."""
    names = Placeholders()
    found: dict[str, list[str]] = {}
    for section, known_names, _, gated in _sections(network, classes):
        names.names |= known_names
        for module, candidates in _outputs(mapping.outputs, section, gated):
            found[names.fill(module)] = [_add_scope(mapping, names.fill(candidate)) for candidate in candidates]
    return found


def _add_scope(mapping: VariantMapping, name: str, above: int = 0) -> str:
    """``name`` in the mapping's scope, or in one so many above it."""
    scopes = mapping.scope.split("/") if mapping.scope else []
    return "/".join([*scopes[: max(0, len(scopes) - above)], name])


def _outputs(outputs: dict[str, dict[str, list[str]]], section: str, gated: bool) -> Iterator[tuple[str, list[str]]]:
    for module, candidates in outputs.get(section, {}).items():
        if module != "squeeze_excite":
            yield module, candidates
        elif gated:
            yield from _outputs(outputs, module, gated=False)


class _Section(NamedTuple):
    name: str
    names: dict[str, str]
    symbols: dict[str, int]
    gated: bool


def _sections(network: Network, classes: int) -> Iterator[_Section]:
    """The sections of rules in the order of computation, once a block; ``gated``: with squeeze-excite."""
    symbols = {
        "channels": network.channels, "stem": network.stem, "stem_kernel": network.stem_kernel,
        "last_in": network.blocks[-1].out, "last": network.last, "head": network.head,
        "features": network.features, "classes": classes,
    }  # fmt: skip
    outside = {"last_conv": network.last_conv, "last_norm": network.last_norm, "last_act": network.last_act}
    yield _Section("stem", outside, symbols, False)
    for block in network.blocks:
        names = {"block": block.scope, "module": block.module}
        yield _Section(block.kind, names, _block_symbols(block), block.squeezed > 0)
    if network.segmentation is not None and classes:
        symbols |= {"filters": network.segmentation.filters, "low": network.inner_channels}
    for section, present in (("last", network.last), ("head", network.head), ("classifier", classes)):
        if present and not (section == "classifier" and network.inner_map):
            yield _Section(section, outside, symbols, False)
    if network.segmentation is not None and classes:
        yield _Section("segmentation", outside, symbols, True)
    if network.detection is not None and classes:
        yield from _detection_sections(network, network.detection.extra, classes)


def _detection_sections(network: Network, extra: list[int], classes: int) -> Iterator[_Section]:
    """One for each further map, and one for the predictors on each map."""
    channels = [network.inner_channels, network.map_channels]
    for number, depth in enumerate(extra):
        half = depth // 2
        names: dict[str, str] = {"last_layer": network.last_endpoint, "number": str(number)}
        names |= {"level": str(number + 2), "half": str(half), "depth": str(depth)}
        yield _Section("extra", names, {"in": channels[-1], "half": half, "depth": depth}, False)
        channels.append(depth)
    for level, (count, inputs) in enumerate(zip(network.boxes, channels, strict=True)):
        symbols = {"in": inputs, "boxes": count * 4, "scores": count * classes}
        yield _Section("predictor", {"level": str(level)}, symbols, False)


def _plain(section: list[BlockRule]) -> Iterator[Rule]:
    return (rule for rule in section if isinstance(rule, Rule))


def _block_symbols(block: Block) -> dict[str, int]:
    return {
        "kernel": block.kernel, "in": block.channels_in, "expanded": block.expanded,
        "squeezed": block.squeezed, "out": block.out,
    }  # fmt: skip


def _expand(
    mapping: VariantMapping, section: str, names: Placeholders, symbols: dict[str, int], gated: bool = False
) -> Iterator[Expected]:
    """The rules of ``section``; ``gated`` tells that squeeze-excite is in the block."""
    rules: list[BlockRule] = getattr(mapping.rules, section)
    for number, rule in enumerate(rules):
        if not isinstance(rule, Rule):
            yield from _expand(mapping, rule, names, symbols) if gated else ()
            continue
        key = f"rules.{section}[{number}]"
        try:
            shape = tuple(size if isinstance(size, int) else symbols[size] for size in rule.shape)
            source = names.fill(mapping.names.get(rule.source, rule.source))
            target = names.fill(rule.target)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{key}: {error} is not known here; known: {', '.join([*symbols, *names.names])}"
            ) from error
        if len(shape) != rank(rule.axes):
            raise ValueError(f"{key}.shape: layout {rule.axes} takes {rank(rule.axes)} sizes, not {len(shape)}")
        source = _add_scope(mapping, source, SCOPES_ABOVE.get(section, 0))
        axis = rule.shape.index("classes") if "classes" in rule.shape else None
        if rule.axes == "batch_norm":
            for variable, entry in mapping.batch_norm.items():
                yield Expected(f"{source}/{variable}", f"{target}.{entry}", "vector", shape, axis)
        else:
            folds = gated and rule.absorbs_gate
            yield Expected(source, target, rule.axes, shape, axis, folds, rule.gate_shift)
