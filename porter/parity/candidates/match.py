"""Matching a candidate's outputs to endpoints: by name, or for foreign ports by shape and value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from porter.network.nodes import CLASS_ENDPOINTS
from porter.parity.candidates.candidate import Operation, Output, Outputs, Recording
from porter.parity.compare import Row
from porter.parity.references.reference import Values, thin
from porter.parity.verdict import Verdict

ALIKE = 1e-2  # over the scale: an operation whose kept values are further from an endpoint's is not that endpoint
FEW_VALUES = 512  # kept of each operation, to find it by

# Operations that begin a layer. A layer's output is that of the last operation before the next of these
LAYERS = frozenset(
    (
        *("convolution", "_convolution", "mkldnn_convolution", "linear", "addmm", "mm", "bmm", "mean"),
        *("_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d_with_indices", "upsample_bilinear2d"),
    )
)


Judge = Callable[[str, Values, Output], Row]  # compares an output with an endpoint, in one shape


class Found(NamedTuple):
    """An endpoint's row, the candidate's output, and the reference's values in its shape.

    ``returned``: False for what lies inside a foreign port.
    """

    row: Row
    output: Output
    reference: np.ndarray
    returned: bool = True


class Expected(NamedTuple):
    """Values that a port may give, and the name of the endpoint, or of the output, that they are."""

    name: str
    values: Values


class Named:
    """A candidate's outputs under TensorFlow's names. Endpoints must be asked for in the order of computation.

    ``background`` is the class that a port may have left out; ``keep`` as in a reference.
    """

    def __init__(self, outputs: Outputs, names: Sequence[str], background: int | None, keep: int) -> None:
        self.outputs, self.background, self.keep = outputs, background, keep
        self.order = {name: position for position, name in enumerate(names)}
        self.upcoming: tuple[str, Output] | None = None

    def at(self, name: str, reference: Values, judge: Judge) -> list[Found]:
        """The output at the endpoint ``name``; none if the candidate has none."""
        while self.upcoming is None or self.order.get(self.upcoming[0], -1) < self.order[name]:
            self.upcoming = None  # holds only one at a time
            self.upcoming = next(self.outputs, None)
            if self.upcoming is None:
                return []
        if self.upcoming[0] != name:
            return []
        output, self.upcoming = self.upcoming[1], None
        shape = output.best.shape
        if reference.values.shape[1] == shape[1] + 1:
            reference = as_ported(name, reference, self.background)[-1]
        if squeezed(shape) == squeezed(reference.values.shape):
            output = output.reshaped(reference.values.shape)
        output = output.thinned(self.keep) if self.keep else output
        return [Found(judge(name, reference, output), output, reference.values)]

    def rest(self, _judge: Judge, _verdict: Verdict) -> list[Found]:
        """Nothing: every output is an endpoint."""
        return []

    def close(self) -> None:
        """Stop the computation."""
        self.upcoming = None
        self.outputs.close()  # type: ignore[attr-defined]  # a generator's


class Operations:
    """The operations of a foreign port, each found by the values that it gives.

    An endpoint whose values no operation gives is not matched. That is no fault: a port may compute it in another way,
    or not at all.
    """

    def __init__(self, recording: Recording, background: int | None) -> None:
        self.recording, self.background = recording, background
        self.start = -1  # the operation of the last match
        self.matched: list[str] = []
        self.left: Expected | None = None  # the first endpoint after the last match

    def at(self, name: str, reference: Values, judge: Judge) -> Found | None:
        """The operation with the values of ``reference``; the first after the last match, if several have."""
        for values in as_ported(name, reference, self.background):
            if found := self._matching(name, values, judge):
                return found
        if self.left is None:
            self.left = Expected(name, reference)
        return None

    def _matching(self, name: str, reference: Values, judge: Judge) -> Found | None:
        shape, sample = sampled(reference.values, keep=0)
        best = None
        for number, operation in enumerate(self.recording.operations):
            if operation.shape == shape:
                rank = (float(f"{apart(operation.sample, sample):.3g}"), number <= self.start, number)
                best = rank if best is None else min(best, rank)
        if best is not None and best[0] <= ALIKE:
            found = self._judged(best[2], name, reference, judge)
            if found.row.passed or found.row.same_function:
                self.start, self.left = max(self.start, best[2]), None
                self.matched.append(name)
                return found
        return None

    def first_difference(self, judge: Judge) -> Found | None:
        """The first endpoint behind the last match, and the layer of its shape that comes next; if there is one."""
        if self.left is None:
            return None
        number, shape = None, squeezed(self.left.values.values.shape)
        for later in range(self.start + 1, len(self.recording.operations)):
            operation = self.recording.operations[later]
            if number is not None and operation.kind in LAYERS:
                break
            if operation.shape == shape:
                number = later
        return None if number is None else self._judged(number, *self.left, judge)

    def _judged(self, number: int, name: str, reference: Values, judge: Judge) -> Found:
        output = self.recording.values(number).reshaped(reference.values.shape)
        row = judge(name, reference, output)._replace(port_name=self.recording.operations[number].place)
        return Found(row, output, reference.values, returned=False)


def as_ported(name: str, values: Values, background: int | None) -> list[Values]:
    """What a port may give at the endpoint ``name``: ``values``; of classes, also without class ``background``."""
    if name not in CLASS_ENDPOINTS or background is None or values.values.shape[1] < 2:
        return [values]
    rest = np.delete(values.values, background, axis=1)
    return [values, values._replace(values=rest / rest.sum(1, keepdims=True) if name == "Predictions" else rest)]


def sampled(values: np.ndarray, keep: int) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape without sides of 1, and some of the values; of those that a recorded reference keeps, if any."""
    if keep:
        values = thin(values, keep)
    flat = values.reshape(-1)
    return squeezed(values.shape), flat[:: max(1, flat.size // FEW_VALUES)].copy()


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without sides of 1, but with its batch: vectors are written as (N, C), (N, C, 1, 1) or (N, 1, 1, C)."""
    return (shape[0], *(side for side in shape[1:] if side != 1))


def apart(values: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference over the reference's scale; infinite for NaN."""
    distance = float(np.abs(values - reference).max(initial=0.0) / (np.abs(reference).max(initial=0.0) or 1.0))
    return distance if np.isfinite(distance) else float("inf")


def kinds(operations: Sequence[Operation]) -> list[tuple[str, tuple[int, ...]]]:
    """Kinds and shapes: equal for two precisions of a module that compute the same operations."""
    return [(operation.kind, operation.shape) for operation in operations]
