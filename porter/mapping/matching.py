"""Matching a network's variables with a checkpoint's by scope, then by shape, kind and name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from porter.mapping.rules import Expected
from porter.sources.variable import Variable

# Kind of a variable by the last part of its name, as different writers have it
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
    """One variable of the network: the checkpoint's ``name`` for it, or None, and other candidates."""

    wanted: Expected
    name: str | None
    others: tuple[str, ...]
    reason: str

    @property
    def certain(self) -> bool:
        """True if it was found and had no other candidate."""
        return self.name is not None and not self.others


def find_scope(expected: list[Expected], candidates: dict[str, Variable]) -> str:
    """The scope with most of slim's names in their shapes; empty if none has any."""
    votes: defaultdict[str, int] = defaultdict(int)
    for want in expected:
        for name, variable in candidates.items():
            if variable.shape == want.shape and (name == want.source or name.endswith(f"/{want.source}")):
                votes[name.removesuffix(want.source).rstrip("/")] += 1
    return max(votes, key=lambda scope: votes[scope], default="")


def choose(expected: list[Expected], candidates: dict[str, Variable], scope: str) -> tuple[Choice, ...]:
    """Match by name first, then by shape and kind."""
    free = dict(candidates)
    named: dict[str, Choice] = {}
    for want in expected:
        name = join(scope, want.source)
        if name in free and free[name].shape == want.shape:
            del free[name]
            named[want.source] = Choice(want, name, (), "name")
    groups: defaultdict[tuple[tuple[int, ...], str], list[Expected]] = defaultdict(list)
    for want in expected:
        if want.source not in named:
            groups[want.shape, kind_of(want.source)].append(want)
    for (shape, kind), wanted in groups.items():
        fitting = [n for n, v in free.items() if v.shape == shape and kind_of(n) in (kind, "")]
        named |= _match(wanted, sorted(fitting, key=_natural))
    taken = Counter(choice.name for choice in named.values())
    for source, choice in named.items():  # a name that tells no kind fits several
        if choice.certain and taken[choice.name] > 1:
            named[source] = Choice(choice.wanted, None, (), f"{choice.name} fits {taken[choice.name]} alike")
    return tuple(named[want.source] for want in expected)


def _match(wanted: list[Expected], names: list[str]) -> dict[str, Choice]:
    """Pairs of one shape and kind, the most similar names first. Ties go by order; the rivals are listed."""
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
    """Share of words and numbers that two names have in common."""
    first, second = _words(a), _words(b)
    return len(first & second) / len(first | second)


def _words(name: str) -> set[str]:
    """``expanded_conv_1/expand/weights`` -> expanded, conv, 1, expand, weight."""
    *path, last = name.split("/")
    words = set(re.findall(r"\d+|[a-z]+", "/".join(path).lower()))
    return words | {kind_of(name) or last.lower()}


def kind_of(name: str) -> str:
    """A key of KINDS, or nothing."""
    last = name.rsplit("/", 1)[-1].lower()
    return next((kind for kind, words in KINDS.items() if last in words), "")


def _natural(name: str) -> list[tuple[int, str]]:
    """``block_2`` before ``block_10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def join(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name
