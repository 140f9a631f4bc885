"""``draft``: proposing a mapping for a checkpoint with other variable names.

Variables are matched by scope first, then by shape, kind and name. Any with more than one candidate is marked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from porter.artifacts.artifact import ARTIFACT_SUFFIXES, load_artifact
from porter.artifacts.variant import class_count
from porter.errors import MappingError
from porter.mapping.files import list_variants, load_variant
from porter.mapping.matching import Choice, choose, find_scope, join
from porter.mapping.plan import ignore_reason
from porter.mapping.rules import expected_variables
from porter.mapping.schema import Ignored, VariantMapping
from porter.network.network import build_network
from porter.network.nodes import is_weight, state_dict_shapes
from porter.sources import Checkpoint, open_checkpoint
from porter.sources.dtypes import FLOATS
from porter.text import printable, yaml_text


@dataclass(frozen=True)
class Draft:
    """A proposal: the variant, the scope that the names share, and every choice."""

    checkpoint: str
    variant: str
    scope: str
    choices: tuple[Choice, ...]
    ignored: tuple[Ignored, ...]

    @property
    def uncertain(self) -> int:
        """The number of uncertain choices."""
        return sum(not choice.certain for choice in self.choices)

    def yaml(self) -> str:
        """The mapping file; uncertain lines are marked and list the other candidates."""
        found = sum(choice.name is not None for choice in self.choices)
        lines = [
            f"# Drafted by mnv3-port for {printable(self.checkpoint)}: {found} of {len(self.choices)} variables found,",
            f"# {self.uncertain} to check (marked UNCERTAIN or MISSING). Only the original graph (verify --reference",
            "# frozen or meta), or outputs that you know, prove it right.",
            f"base: {self.variant}.yaml",
            f"scope: {yaml_text(self.scope)}",
        ]
        renamed = [c for c in self.choices if c.name != join(self.scope, c.wanted.source) or c.others]
        if renamed:
            lines += ["", "variables:  # name below the scope, as slim has it -> the checkpoint's name"]
        for choice in renamed:
            key = yaml_text(choice.wanted.source)
            if choice.name is None:
                lines.append(f"  # {key}: MISSING, shape {list(choice.wanted.shape)}: {printable(choice.reason)}")
            else:
                others = f", UNCERTAIN, as well: {printable(', '.join(choice.others))}" if choice.others else ""
                lines.append(f"  {key}: {yaml_text(choice.name)}  # {printable(choice.reason)}{others}")
        lines += ["", "ignore:  # in addition to the base's"] if self.ignored else []
        lines += [f"  - {{pattern: {yaml_text(i.pattern)}, reason: {yaml_text(i.reason)}}}" for i in self.ignored]
        return "\n".join(lines) + "\n"


def draft(checkpoint: str, to: str) -> Draft:
    """Propose a mapping of ``checkpoint`` to ``to``: a variant, timm's name of one, or a state-dict file of one.

    Raises MappingError if ``to`` is none of them, CheckpointError if the checkpoint cannot be read.
    """
    opened = open_checkpoint(checkpoint)
    variant = _variant(to)
    mapping = load_variant(variant)
    candidates = {name: v for name, v in opened.items() if v.dtype in FLOATS and ignore_reason(mapping, name) is None}
    expected = expected_variables(mapping, build_network(mapping), _classes(opened, mapping))
    expected = [want._replace(source=want.local) for want in expected]
    scope = find_scope(expected, candidates)
    choices = choose(expected, candidates, scope)
    taken = {choice.name for choice in choices}
    unused = tuple(name for name in opened if name not in taken and ignore_reason(mapping, name) is None)
    ignored = [Ignored(_literal(name), "in the checkpoint, no part of the network") for name in unused]
    return Draft(checkpoint, variant, scope, choices, tuple(ignored))


def _variant(to: str) -> str:
    if to in list_variants():
        return to
    by_timm = {load_variant(variant).timm: variant for variant in list_variants()}
    if to in by_timm:
        return by_timm[to]
    if not to.endswith(ARTIFACT_SUFFIXES):
        raise MappingError(
            f"{to}: no variant ({', '.join(list_variants())}), no timm name of one and no state-dict file"
        )
    arrays = load_artifact(Path(to)).arrays
    found = {name: values.shape for name, values in arrays.items() if is_weight(name)}
    for variant in list_variants():
        classes = class_count(arrays)
        shapes = state_dict_shapes(build_network(load_variant(variant)), classes)
        if found == {name: shape for name, shape in shapes.items() if is_weight(name)}:
            return variant
    raise MappingError(f"{to}: is the state dict of no variant ({', '.join(list_variants())}), by names and shapes")


def _classes(opened: Checkpoint, mapping: VariantMapping) -> int:
    """Outputs of the classifier: the only size with weights on the network's features and a bias; else 1001."""
    network = build_network(mapping)
    own = {want.shape for want in expected_variables(mapping, network, 0)}
    shape = (1, 1, network.features)
    sizes = {v.shape[3] for v in opened.values() if v.shape[:3] == shape and len(v.shape) == 4 and v.shape not in own}
    sizes = {size for size in sizes if any(v.shape == (size,) for v in opened.values())}
    return sizes.pop() if len(sizes) == 1 else 1001


def _literal(name: str) -> str:
    """``name`` as a shell pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", name)
