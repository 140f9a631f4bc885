"""The interface of candidates, the ports that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from porter.models.build import Whole
from porter.network.node import Size
from porter.parity.references.reference import Noise, thin

Question = Literal["function", "rounding"]
QUESTIONS: frozenset[Question] = frozenset(("function", "rounding"))


class Output(NamedTuple):
    """What a candidate computes at one endpoint, NHWC or (N, classes).

    ``exact`` in float64 (or levels of 8 bits), ``single`` in float32; None where it was not asked for or cannot be.
    ``noise`` stands for ``single`` where only its error from ``exact`` is known.
    """

    exact: np.ndarray | None
    single: np.ndarray | None
    noise: Noise | None = None

    def thinned(self, keep: int) -> Output:
        """The part of it that a recorded reference keeps."""
        exact, single = (None if side is None else thin(side, keep) for side in (self.exact, self.single))
        return self._replace(exact=exact, single=single)


Outputs = Iterator[tuple[str, Output]]


@dataclass(frozen=True)
class Candidate:
    """A port to check.

    ``run`` takes (N, H, W, C) images and the questions asked, and gives outputs in the order of computation: by
    TensorFlow's endpoint names, or, where it is ``foreign``, by names of its own. ``answers`` are the questions that
    it can answer. ``rounded_weights`` tells that its float64 values carry float32's rounding of folded weights.
    ``changed`` are entries of the state dict that are not what the source gives; ``planned`` tells that there are none
    and the network is ours. ``deployed`` is the form for inference, in float32. ``model`` is our own network, if it is
    one.
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
    digests: dict[str, str] = field(default_factory=dict)
