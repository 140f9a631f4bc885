"""The interface of candidates, the ports that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from torch import nn

from porter.mapping.options import ArtifactLayout
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

    @property
    def best(self) -> np.ndarray:
        """The more exact of both."""
        found = self.single if self.exact is None else self.exact
        assert found is not None
        return found

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> Output:
        """``change`` of both."""
        exact, single = (None if side is None else change(side) for side in (self.exact, self.single))
        return self._replace(exact=exact, single=single)

    def reshaped(self, shape: tuple[int, ...]) -> Output:
        """Both in ``shape``."""
        return self.mapped(lambda side: side.reshape(shape))

    def thinned(self, keep: int) -> Output:
        """The values that a recorded reference keeps; see ``thin``."""
        return self.mapped(lambda side: thin(side, keep))


class Operation(NamedTuple):
    """An operation of a foreign port: its name, its place in the port, and what it gives, in (N, ...) ``shape``."""

    kind: str
    place: str
    shape: tuple[int, ...]
    sample: np.ndarray  # some of the values; see match.sampled


class Recording(NamedTuple):
    """A foreign port's run on a batch: what it returned, by the port's own names, and its operations in order.

    ``values(number)`` runs it again to get all values of an operation. ``remarks`` say what is odd about the run.
    """

    returned: Sequence[tuple[str, Output]]
    operations: Sequence[Operation] = ()
    values: Callable[[int], Output] = lambda _number: Output(None, None)
    remarks: Sequence[str] = ()
    close: Callable[[], None] = lambda: None


class StateDict(NamedTuple):
    """A port's state dict in ``layout``; ``changed``: entries unlike the source's -> share of values that differ."""

    arrays: Mapping[str, np.ndarray]
    layout: ArtifactLayout
    changed: Mapping[str, float]


Outputs = Iterator[tuple[str, Output]]


@dataclass(frozen=True)
class Candidate:
    """A port to check.

    ``run`` takes images (N, H, W, C) and the questions to answer. It yields (name, output) in the order of computation,
    under TensorFlow's names of endpoints. A port that has other names has ``record`` instead, with the number of values
    that a recorded reference keeps as its third argument. ``answers``: the questions that it can answer.
    ``rounded_weights``: True if its float64 values include the float32 rounding of folded weights. ``changed``:
    state-dict entries that differ from the source's. ``deployed``: True for the inference form, in float32. ``model``:
    our own network, if it is one. ``modules``: what computes in float32 and in float64, if modules do. ``weights``: the
    state dict, if it has our entries. ``device``: where PyTorch computes it.
    """

    name: str
    run: Callable[[np.ndarray, frozenset[Question]], Outputs] = lambda _images, _questions: iter(())
    record: Callable[[np.ndarray, frozenset[Question], int], Recording] | None = None
    answers: frozenset[Question] = QUESTIONS
    rounded_weights: bool = False
    changed: tuple[str, ...] = ()
    deployed: bool = False
    size: Size | None = None
    model: Whole | None = None
    modules: tuple[nn.Module, nn.Module] | None = None
    weights: StateDict | None = None
    device: str = "cpu"
    digests: dict[str, str] = field(default_factory=dict)
