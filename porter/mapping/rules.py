"""Expanding a mapping's rules over its network: every variable that is expected, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from porter.mapping.layouts import RANKS
from porter.mapping.network import Block, Network
from porter.mapping.schema import Rule, VariantMapping


class Expected(NamedTuple):
    """One variable a checkpoint should have.

    ``shape`` is TensorFlow's; ``class_axis`` its axis of classes, or None; ``folds_gate`` tells that the
    squeeze-excite constant may be folded into it.
    """

    source: str
    target: str
    layout: str
    shape: tuple[int, ...]
    class_axis: int | None
    folds_gate: bool


def expected_variables(mapping: VariantMapping, network: Network, classes: int) -> list[Expected]:
    """All expected variables, network first, then block by block.

    Raises ValueError (``key: what is wrong``) on a shape symbol or placeholder that does not exist.
    """
    symbols = {
        "channels": network.channels, "stem": network.stem, "stem_kernel": network.stem_kernel,
        "last_in": network.blocks[-1].out, "last": network.last, "head": network.head, "classes": classes,
    }  # fmt: skip
    names = {"last_module": network.last_module}
    expected = list(_expand(mapping, "network", names, symbols, folds=False))
    for block in network.blocks:
        names = {"block": block.scope, "module": block.module}
        symbols = _block_symbols(block)
        kind = "separable" if block.separable else "inverted_residual"
        expected += _expand(mapping, kind, names, symbols, folds=block.squeezed > 0)
        if block.squeezed:
            expected += _expand(mapping, "squeeze_excite", names, symbols, folds=False)
    return expected


def _block_symbols(block: Block) -> dict[str, int]:
    return {
        "kernel": block.kernel, "in": block.channels_in, "expanded": block.expanded,
        "squeezed": block.squeezed, "out": block.out,
    }  # fmt: skip


def _expand(
    mapping: VariantMapping, section: str, names: dict[str, str], symbols: dict[str, int], *, folds: bool
) -> Iterator[Expected]:
    rules: list[Rule] = getattr(mapping.rules, section)
    for number, rule in enumerate(rules):
        key = f"rules.{section}[{number}]"
        try:
            shape = tuple(size if isinstance(size, int) else symbols[size] for size in rule.shape)
            source, target = rule.source.format(**names), rule.target.format(**names)
        except (KeyError, IndexError) as error:
            raise ValueError(f"{key}: {error} is not known here; known: {', '.join([*symbols, *names])}") from error
        if len(shape) != RANKS[rule.layout]:
            raise ValueError(f"{key}.shape: layout {rule.layout} takes {RANKS[rule.layout]} sizes, not {len(shape)}")
        source = f"{mapping.scope}/{source}" if mapping.scope else source
        axis = rule.shape.index("classes") if "classes" in rule.shape else None
        if rule.layout == "batch_norm":
            for variable, entry in mapping.batch_norm.items():
                yield Expected(f"{source}/{variable}", f"{target}.{entry}", "vector", shape, axis, False)
        else:
            yield Expected(source, target, rule.layout, shape, axis, folds and rule.absorbs_gate)
