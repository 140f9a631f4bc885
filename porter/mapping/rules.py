"""Expanding a mapping's rules over its network: every expected variable, and its state-dict entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from porter.mapping.axes import source_shape
from porter.mapping.schema import Rule, VariantMapping
from porter.network.names import fill
from porter.network.network import Network, build_network, remembered
from porter.network.node import Group, Shape, behind_gates
from porter.network.nodes import groups, nodes, state_dict_shapes, torchvision_names


class Expected(NamedTuple):
    """One variable that a checkpoint should have, ``source``, and the state-dict entry that it becomes, ``target``.

    ``shape`` is TensorFlow's, in the order of ``axes``. ``local``: the name without the mapping's scope.
    ``folds_gate``: True for weights that the squeeze-excite constant may be folded into. ``gate_bias``: True for the
    bias before a gate, which may include the 3 of relu6(x + 3).
    """

    source: str
    target: str
    axes: str
    shape: Shape
    local: str
    folds_gate: bool = False
    gate_bias: bool = False


NEXT = re.compile(r"\{next_(\w+)\}")


def _filled(template: str, names: dict[str, str | int]) -> str:
    """``template`` with every placeholder filled in. Raises KeyError, ValueError.

    ``{next_x}`` increments the counter x in ``names``, from 0, before; ``{x}`` is its current value.
    """
    for counter in NEXT.findall(template):
        names[counter] = int(names.get(counter, -1)) + 1
    return fill(NEXT.sub(r"{\1}", template), names)


def expected_variables(mapping: VariantMapping, network: Network, classes: int) -> list[Expected]:
    """All expected variables in the order of computation; with 0 ``classes``, without a classifier.

    Raises ValueError (``key: what is wrong``) for a placeholder or an entry that does not exist.
    """
    return list(_all_expected(mapping, network, classes))


@remembered
def _all_expected(mapping: VariantMapping, network: Network, classes: int) -> tuple[Expected, ...]:
    return tuple(_expanded(mapping, network, classes))


def first_variable(mapping: VariantMapping) -> Expected:
    """The weight of the first convolution, without expanding the rules of the rest. Raises ValueError."""
    network = replace(build_network(mapping), blocks=(), last=0, backbone=True, head=None)
    return next(_expanded(mapping, network, classes=0))


def _expanded(mapping: VariantMapping, network: Network, classes: int) -> Iterator[Expected]:
    known = {rule.source for section in mapping.rules.values() for rule in section if isinstance(rule, Rule)}
    for name in mapping.names:
        if name not in known:
            raise ValueError(f"names.{name}: is the `from` of no rule")
    every = nodes(network, classes)
    shapes, folds = state_dict_shapes(network, classes), behind_gates(every)
    layers = {node.name: node.layer for node in every}
    gates = {f"{node.layer or layers[node.inputs[0]]}.bias" for node in every if node.activation == "gate"}
    renamed = {} if network.head is None else torchvision_names(network)
    names, used = dict[str, str | int](), 0
    for group in groups(network, classes):
        names |= group.names
        for key, rule in _rules(mapping, group):
            used += 1
            if used > 2 * len(shapes):  # each fills an entry at least
                raise ValueError(f"{key}: the rules are used more often than twice for each of {len(shapes)} entries")
            try:
                local = _filled(mapping.names.get(rule.source, rule.source), names)
                target = _filled(rule.target, names)
            except KeyError as error:
                raise ValueError(f"{key}: {error} is not known here; known: {', '.join(names)}") from error
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            axes = mapping.layouts.get(local, rule.axes)
            for variable, entry in mapping.batch_norm.items() if axes == "batch_norm" else (("", ""),):
                module, _, part = ".".join(filter(None, (target, entry))).rpartition(".")
                module = renamed.get(module, module)
                target_entry = f"{module}.{part}"
                if target_entry not in shapes:
                    raise ValueError(f"{key}.to: the network has no entry {target_entry}")
                if target_entry in mapping.constants:
                    continue
                try:
                    shape = source_shape(axes, shapes[target_entry])
                except ValueError as error:
                    raise ValueError(f"{key}.layout: {target_entry}: {error}") from error
                below = "/".join(filter(None, (local, variable)))
                source = mapping.variables.get(below) or _add_scope(mapping, below, group.above)
                yield Expected(
                    source,
                    target_entry,
                    "vector" if axes == "batch_norm" else axes,
                    shape,
                    below,
                    module in folds and part == "weight",
                    target_entry in gates,
                )


def _rules(mapping: VariantMapping, group: Group) -> Iterator[tuple[str, Rule]]:
    """A group's rules and their keys in the file; ``squeeze_excite`` in a block stands for that section's rules."""
    if group.section and group.section not in mapping.rules:
        raise ValueError(f"rules.{group.section}: is missing, and the network needs it")
    rules = mapping.rules.get(group.section, [])
    gated = any(node.operation == "multiply" for node in group.nodes)
    for number, rule in enumerate(rules):
        if isinstance(rule, Rule):
            yield f"rules.{group.section}[{number}]", rule
        elif gated:
            for position, inner in enumerate(mapping.rules.get("squeeze_excite", [])):
                assert isinstance(inner, Rule)  # as files.py checks
                yield f"rules.squeeze_excite[{position}]", inner


def module_outputs(mapping: VariantMapping, network: Network, classes: int) -> dict[str, list[str]]:
    """Module -> names that its output may have in the source, from the mapping's ``outputs``."""
    names: dict[str, str | int] = {}
    found: dict[str, list[str]] = {}
    for group in groups(network, classes):
        names |= group.names
        gated = any(node.operation == "multiply" for node in group.nodes)
        # An activation of a tail has no variables, and so no rules
        section = group.section or (group.nodes[0].activation or "" if "layer" in group.names else "")
        for module, candidates in _outputs(mapping.outputs, section, gated):
            found[_filled(module, names)] = [_add_scope(mapping, _filled(one, names)) for one in candidates]
    return found


def _add_scope(mapping: VariantMapping, name: str, above: int = 0) -> str:
    """``name`` in the mapping's scope, or in its parent ``above`` levels up."""
    scopes = mapping.scope.split("/") if mapping.scope else []
    return "/".join([*scopes[: max(0, len(scopes) - above)], name])


def _outputs(outputs: dict[str, dict[str, list[str]]], section: str, gated: bool) -> Iterator[tuple[str, list[str]]]:
    for module, candidates in outputs.get(section, {}).items():
        if module != "squeeze_excite":
            yield module, candidates
        elif gated:
            yield from _outputs(outputs, module, gated=False)
