"""The interface of candidates, the ports that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from torch import nn

from porter.models.build import Whole
from porter.network.node import Size
from porter.parity.references.reference import Noise, thin

Question = Literal["function", "rounding"]
QUESTIONS: frozenset[Question] = frozenset(("function", "rounding"))


class Output(NamedTuple):
    """What a candidate computes at one endpoint, NHWC or (N, classes).

    ``exact`` is float64 (or 8-bit levels), ``single`` float32; None if not asked for or not available. ``noise``
    replaces ``single`` where only its error against ``exact`` is known.
    """

    exact: np.ndarray | None
    single: np.ndarray | None
    noise: Noise | None = None

    def thinned(self, keep: int) -> Output:
        """The values that a recorded reference keeps; see ``thin``."""
        exact, single = (None if side is None else thin(side, keep) for side in (self.exact, self.single))
        return self._replace(exact=exact, single=single)


Outputs = Iterator[tuple[str, Output]]


@dataclass(frozen=True)
class Candidate:
    """A port to check.

    ``run`` takes images (N, H, W, C) and the questions to answer. It yields (name, output) in the order of computation;
    names are TensorFlow's endpoints, or the candidate's own if ``foreign``. ``answers``: the questions that it can
    answer. ``rounded_weights``: True if its float64 values include the float32 rounding of folded weights. ``changed``:
    state-dict entries that differ from the source's. ``planned``: True if there are none and the network is ours.
    ``deployed``: True for the inference form, in float32. ``model``: our own network, if it is one. ``modules``: what
    computes in float32 and in float64, if modules do.
    """

    name: str
    run: Callable[[np.ndarray, frozenset[Question]], Outputs]
    answers: frozenset[Question] = QUESTIONS
    foreign: bool = False
    rounded_weights: bool = False
    changed: tuple[str, ...] = ()
    planned: bool = False
    deployed: bool = False
    size: Size | None = None
    model: Whole | None = None
    modules: tuple[nn.Module, nn.Module] | None = None
    digests: dict[str, str] = field(default_factory=dict)
