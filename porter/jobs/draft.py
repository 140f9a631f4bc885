"""``draft``: a mapping proposed for a checkpoint whose variables have names of their own.

Decided by scope first, then by shape, kind of variable and name. What had more than one candidate is marked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from porter.architecture.layers import COUNTER, state_dict_shapes
from porter.architecture.network import build_network
from porter.artifacts.files import load_artifact
from porter.artifacts.locate import SUFFIXES
from porter.errors import MappingError
from porter.formats import Checkpoint, Variable, open_checkpoint
from porter.formats.dtypes import FLOATS
from porter.mapping.files import list_variants, load_variant
from porter.mapping.plan import ignore_reason
from porter.mapping.rules import Expected, expected_variables
from porter.mapping.schema import Ignored, VariantMapping

# What the last part of a name says, as different writers say it
KINDS = {
    "weight": {"weights", "weight", "kernel", "w", "filters", "depthwise_weights", "depthwise_kernel"},
    "bias": {"biases", "bias", "b"},
    "gamma": {"gamma", "scale"},
    "beta": {"beta", "offset", "shift"},
    "mean": {"moving_mean", "running_mean", "mean", "mu"},
    "variance": {"moving_variance", "running_var", "variance", "var"},
}


@dataclass(frozen=True)
class Choice:
    """One variable of the network: the checkpoint's ``name`` for it, or None, and the other candidates."""

    wanted: Expected
    name: str | None
    others: tuple[str, ...]
    reason: str

    @property
    def certain(self) -> bool:
        """Found, and there was no other candidate."""
        return self.name is not None and not self.others


@dataclass(frozen=True)
class Draft:
    """A proposal: the variant it is for, the scope that the names share, and every choice."""

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
        """The mapping file; uncertain lines say so and name the other candidates."""
        found = sum(choice.name is not None for choice in self.choices)
        lines = [
            f"# Drafted by mnv3-port for {self.checkpoint}: {found} of {len(self.choices)} variables found,",
            f"# {self.uncertain} to check (marked UNCERTAIN or MISSING). Only the original graph (verify --reference",
            "# frozen or meta), or outputs that you know, prove it right.",
            f"base: {self.variant}.yaml",
            f"scope: {_quote(self.scope)}",
        ]
        renamed = [c for c in self.choices if c.name != _join(self.scope, c.wanted.source) or c.others]
        if renamed:
            lines += ["", "variables:  # name below the scope, as slim has it -> the checkpoint's name"]
        for choice in renamed:
            key = _quote(choice.wanted.source)
            if choice.name is None:
                lines.append(f"  # {key}: MISSING, shape {list(choice.wanted.shape)}: {choice.reason}")
            else:
                others = f", UNCERTAIN, as well: {', '.join(choice.others)}" if choice.others else ""
                lines.append(f"  {key}: {_quote(choice.name)}  # {choice.reason}{others}")
        lines += ["", "ignore:"]
        lines += [f"  - {{pattern: {_quote(i.pattern)}, reason: {_quote(i.reason)}}}" for i in self.ignored]
        return "\n".join(lines) + "\n"


def draft(checkpoint: str, to: str) -> Draft:
    """Propose a mapping of ``checkpoint`` to ``to``: a variant, timm's name of one, or a state-dict file of one.

    Raises MappingError where ``to`` is none of them, CheckpointError where the checkpoint cannot be read.
    """
    opened = open_checkpoint(checkpoint)
    variant = _variant(to)
    mapping = load_variant(variant)
    candidates = {name: v for name, v in opened.items() if v.dtype in FLOATS and ignore_reason(mapping, name) is None}
    expected = _without_scope(mapping, _classes(opened, mapping))
    scope = _scope(expected, candidates)
    choices = _choose(expected, candidates, scope)
    taken = {choice.name for choice in choices}
    unused = tuple(name for name in opened if name not in taken and ignore_reason(mapping, name) is None)
    ignored = [
        *mapping.ignore,
        *(Ignored(_literal(name), "in the checkpoint, no part of the network") for name in unused),
    ]
    return Draft(checkpoint, variant, scope, choices, tuple(ignored))


def _variant(to: str) -> str:
    if to in list_variants():
        return to
    by_timm = {load_variant(variant).timm: variant for variant in list_variants()}
    if to in by_timm:
        return by_timm[to]
    if not to.endswith(SUFFIXES):
        raise MappingError(
            f"{to}: no variant ({', '.join(list_variants())}), no timm name of one and no state-dict file"
        )
    tensors = load_artifact(Path(to)).tensors
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    for variant in list_variants():
        classes = len(tensors.get("classifier.bias", ()))
        shapes = state_dict_shapes(build_network(load_variant(variant)), classes)
        if found == {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}:
            return variant
    raise MappingError(f"{to}: is the state dict of no variant ({', '.join(list_variants())}), by names and shapes")


def _without_scope(mapping: VariantMapping, classes: int) -> list[Expected]:
    network = build_network(mapping)
    prefix = f"{mapping.scope}/" if mapping.scope else ""
    found = expected_variables(mapping, network, classes)
    return [want._replace(source=want.source.removeprefix(prefix)) for want in found]


def _classes(opened: Checkpoint, mapping: VariantMapping) -> int:
    """Outputs of the classifier: the one size that goes with the network's features and with nothing before them."""
    network = build_network(mapping)
    own = {want.shape for want in expected_variables(mapping, network, 0)}
    shape = (1, 1, network.features)
    sizes = {v.shape[3] for v in opened.values() if v.shape[:3] == shape and len(v.shape) == 4 and v.shape not in own}
    sizes = {size for size in sizes if any(v.shape == (size,) for v in opened.values())}
    return sizes.pop() if len(sizes) == 1 else 1001


def _scope(expected: list[Expected], candidates: dict[str, Variable]) -> str:
    """The scope below which most of slim's names are found in their shapes; empty where none are."""
    votes: defaultdict[str, int] = defaultdict(int)
    for want in expected:
        for name, variable in candidates.items():
            if variable.shape == want.shape and (name == want.source or name.endswith(f"/{want.source}")):
                votes[name.removesuffix(want.source).rstrip("/")] += 1
    return max(votes, key=lambda scope: votes[scope], default="")


def _choose(expected: list[Expected], candidates: dict[str, Variable], scope: str) -> tuple[Choice, ...]:
    """Match by name first, then by shape and kind."""
    free = dict(candidates)
    named: dict[str, Choice] = {}
    for want in expected:
        name = _join(scope, want.source)
        if name in free and free[name].shape == want.shape:
            del free[name]
            named[want.source] = Choice(want, name, (), "name")
    groups: defaultdict[tuple[tuple[int, ...], str], list[Expected]] = defaultdict(list)
    for want in expected:
        if want.source not in named:
            groups[want.shape, _kind(want.source)].append(want)
    for (shape, kind), wanted in groups.items():
        fitting = [n for n, v in free.items() if v.shape == shape and _kind(n) in (kind, "")]
        named |= _match(wanted, sorted(fitting, key=_natural))
    return tuple(named[want.source] for want in expected)


def _match(wanted: list[Expected], names: list[str]) -> dict[str, Choice]:
    """Pairs within one shape and kind, the most similar names first; a tie is settled by order and names the rivals."""
    if not names:
        return {w.source: Choice(w, None, (), "no variable of this shape and kind is left") for w in wanted}
    if len(wanted) == len(names) == 1:
        return {wanted[0].source: Choice(wanted[0], names[0], (), "shape: the only one")}
    like = {(w, n): _likeness(want.source, name) for w, want in enumerate(wanted) for n, name in enumerate(names)}
    pairs = sorted((-like[w, n], abs(w / len(wanted) - n / len(names)), w, n) for w, n in like)
    found: dict[int, int] = {}
    for _, _, w, n in pairs:
        if w not in found and n not in found.values():
            found[w] = n
    choices = {}
    for w, want in enumerate(wanted):
        rivals = tuple(name for n, name in enumerate(names) if n != found.get(w))
        if w in found:
            best = like[w, found[w]]
            equals = tuple(name for n, name in enumerate(names) if n != found[w] and like[w, n] >= best)
            contested = any(like[v, found[w]] >= best for v in range(len(wanted)) if v != w)
            reason = f"most similar name of {len(names)} of this shape"
            if equals or contested:
                reason = f"by order among {len(names)} of this shape"
            choices[want.source] = Choice(want, names[found[w]], rivals if equals or contested else (), reason)
        else:
            choices[want.source] = Choice(want, None, rivals, f"others took {', '.join(rivals)}")
    return choices


def _likeness(a: str, b: str) -> float:
    """Share of common words and numbers in two names."""
    first, second = _words(a), _words(b)
    return len(first & second) / len(first | second)


def _words(name: str) -> set[str]:
    """``expanded_conv_1/expand/weights`` -> expanded, conv, 1, expand, weight."""
    *path, last = name.split("/")
    words = set(re.findall(r"\d+|[a-z]+", "/".join(path).lower()))
    return words | {_kind(name) or last.lower()}


def _kind(name: str) -> str:
    last = name.rsplit("/", 1)[-1].lower()
    return next((kind for kind, words in KINDS.items() if last in words), "")


def _natural(name: str) -> list[tuple[int, str]]:
    """``block_2`` before ``block_10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


def _literal(name: str) -> str:
    """``name`` as a shell pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
