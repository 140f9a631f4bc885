"""Matching a candidate's outputs to endpoints: by name, or for foreign names by shape and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from porter.network.nodes import CLASS_ENDPOINTS
from porter.parity.candidates.candidate import Output, Outputs
from porter.parity.references.reference import Values

# Outputs that differ by more than this, over the endpoint's scale, are not the same endpoint: the search for the next
# one does not start after them
ALIKE = 1e-2


class Fitting(NamedTuple):
    """Values of one endpoint from both sides, in the same shape, and the candidate's own name for it."""

    reference: Values
    output: Output
    port_name: str | None


class Named:
    """A candidate's outputs under TensorFlow's names. Endpoints must be asked for in the order of computation."""

    def __init__(self, outputs: Outputs, names: Sequence[str]) -> None:
        self.outputs = outputs
        self.order = {name: position for position, name in enumerate(names)}
        self.upcoming: tuple[str, Output] | None = None

    def at(self, name: str, reference: Values, background: int | None) -> Fitting | None:
        """The output at the endpoint ``name``; None if the candidate has none."""
        while self.upcoming is None or self.order.get(self.upcoming[0], -1) < self.order[name]:
            self.upcoming = None  # holds only one at a time
            self.upcoming = next(self.outputs, None)
            if self.upcoming is None:
                return None
        if self.upcoming[0] != name:
            return None
        output, self.upcoming = self.upcoming[1], None
        return _fit(name, reference, output, None, background)

    def close(self) -> None:
        """Stop the computation."""
        self.upcoming = None
        self.outputs.close()  # type: ignore[attr-defined]  # a generator's


class Foreign:
    """A candidate's outputs under its own names, all kept in memory."""

    def __init__(self, outputs: Outputs, keep: int) -> None:
        self.outputs = [(name, output.thinned(keep) if keep else output) for name, output in outputs]
        self.start = 0  # the first output that may be the next endpoint

    def at(self, name: str, reference: Values, background: int | None) -> Fitting | None:
        """The output most similar to ``reference`` among those after the last match; None if there is none."""
        best: tuple[float, int, int] | None = None
        found: Fitting | None = None
        for position in range(self.start, len(self.outputs)):
            own_name, output = self.outputs[position]
            fitting = _fit(name, reference, output, own_name or "its output", background)
            shown = fitting.output.exact if fitting.output.exact is not None else fitting.output.single
            if shown is None or shown.shape != fitting.reference.values.shape:
                continue
            scale = np.abs(fitting.reference.values).max() or 1.0
            distance = float(np.abs(shown - fitting.reference.values).max() / scale)
            if not np.isfinite(distance):
                distance = float("inf")
            # A container and its last child give the same output: prefer the container, whose name says where
            rank = (float(f"{distance:.3g}"), own_name.count(".") + 100 * (not own_name), position)
            if best is None or rank < best:
                best, found = rank, fitting
        if best is not None and best[0] <= ALIKE:
            self.start = best[2]
        return found

    def close(self) -> None:
        """Forget them."""
        self.outputs.clear()


def matched(outputs: Outputs, foreign: bool, names: Sequence[str], keep: int) -> Named | Foreign:
    """``outputs``, to be looked up by endpoint; ``names`` are all endpoints in the order of computation.

    A foreign port's outputs are thinned as the reference is: to ``keep`` values per image, 0 for all.
    """
    return Foreign(outputs, keep) if foreign else Named(outputs, names)


def _fit(name: str, reference: Values, output: Output, port_name: str | None, background: int | None) -> Fitting:
    """Both in one shape: without the background class if the candidate lacks it, pooled vectors flattened."""
    shown = output.exact if output.exact is not None else output.single
    assert shown is not None
    values = reference.values
    if name in CLASS_ENDPOINTS and background is not None and shown.ndim == 2 and values.shape[1] == shown.shape[1] + 1:
        values = _without_class(values, background, name == "Predictions")
    if shown.ndim != values.ndim and shown.size == values.size and max(shown.shape[1:-1], default=1) == 1:
        reshaped = [None if side is None else side.reshape(values.shape) for side in (output.exact, output.single)]
        output = output._replace(exact=reshaped[0], single=reshaped[1])
    return Fitting(reference._replace(values=values), output, port_name)


def _without_class(values: np.ndarray, dropped: int, normalize: bool) -> np.ndarray:
    """Logits or predictions (N, classes) as a classifier without class ``dropped`` gives them."""
    rest = np.delete(values, dropped, axis=1)
    return rest / rest.sum(1, keepdims=True) if normalize else rest
