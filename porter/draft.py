"""``draft``: proposing a mapping for a checkpoint with other variable names.

Variables are matched by the file's graph, where it states one that the network follows. Otherwise by scope first, then
by shape, kind and name; any with more than one candidate is marked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from porter.artifacts.artifact import ARTIFACT_SUFFIXES, load_artifact
from porter.artifacts.variant import class_count
from porter.errors import MappingError
from porter.mapping.by_graph import by_graph
from porter.mapping.files import Names, did_you_mean, list_networks, list_variants, load_variant, variant_named
from porter.mapping.matching import Choice, choose, find_scope, join, kind_of
from porter.mapping.plan import fit, ignore_reason
from porter.mapping.rules import expected_variables
from porter.mapping.schema import Ignored, VariantMapping
from porter.network.network import build_network
from porter.network.nodes import is_weight, state_dict_shapes
from porter.sources import Checkpoint, open_checkpoint
from porter.sources.dtypes import FLOATS
from porter.text import printable, yaml_text


@dataclass(frozen=True)
class Draft:
    """A proposal: the mapping files to begin with, the scope that the names share, and every choice.

    ``top``: the mapping's, if it is not that of the variant.
    """

    checkpoint: str
    bases: tuple[str, ...]
    scope: str
    top: str
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
            f"base: {self.bases[0] if len(self.bases) == 1 else '[' + ', '.join(self.bases) + ']'}",
            f"scope: {yaml_text(self.scope)}",
            *([f"top: {self.top}"] if self.top else []),
        ]
        renamed = [c for c in self.choices if c.name != join(self.scope, c.wanted.source) or c.others]
        if renamed:
            lines += ["", "variables:  # name below the scope, as the base has it -> the checkpoint's name"]
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
    names, mapping, scope, top = _names(opened), None, "", ""
    for found in by_graph(opened, [variant]):
        network, classes, expected = fit(found, opened)
        if not found.constants and all(e.source in opened and opened[e.source].shape == e.shape for e in expected):
            names, mapping = "tfjs" if network.bn_folded else "keras", found
            choices = tuple(
                Choice(e._replace(source=e.local), e.source, (), "its place in the graph") for e in expected
            )
            top = "" if classes else "optional" if network.embedding else "none"
            break
    if mapping is None:
        mapping = load_variant(variant, names)
        free = {name: v for name, v in opened.items() if v.dtype in FLOATS and ignore_reason(mapping, name) is None}
        expected = expected_variables(mapping, build_network(mapping), _classes(opened, mapping))
        expected = [want._replace(source=want.local) for want in expected]
        scope = find_scope(expected, free)
        choices = choose(expected, free, scope)
    taken = {choice.name for choice in choices}
    unused = tuple(name for name in opened if name not in taken and ignore_reason(mapping, name) is None)
    ignored = [Ignored(_literal(name), "in the checkpoint, no part of the network") for name in unused]
    bases = (f"{variant}.yaml", *([f"{names}.yaml"] if names != "slim" else []))
    return Draft(checkpoint, bases, scope, top, choices, tuple(ignored))


def _names(opened: Checkpoint) -> Names:
    """Whose names and layouts to begin with; TensorFlow.js's where batch norms are folded into the convolutions."""
    if opened.format in ("keras", "tflite", "tfjs"):
        return opened.format  # type: ignore[return-value]
    kinds = {kind_of(name) for name in opened}
    return "tfjs" if "bias" in kinds and "variance" not in kinds else "slim"


def _variant(to: str) -> str:
    name = variant_named(to)
    if name is not None:
        return name
    if not to.endswith(ARTIFACT_SUFFIXES):
        raise MappingError(
            f"{to}: no variant ({', '.join(list_networks())}), no timm name of one and no state-dict file"
            f"{did_you_mean(to, list_networks())}"
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
