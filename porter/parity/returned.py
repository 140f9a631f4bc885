"""What a foreign port returns, compared with what the source gives. This decides, whichever layers match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from porter.errors import ParityError
from porter.network.network import Network
from porter.network.node import Node, Size
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_names, nodes
from porter.parity.candidates.candidate import Output, Recording
from porter.parity.candidates.match import Expected, Found, Judge, Operations, apart, as_ported, squeezed
from porter.parity.compare import Row
from porter.parity.references.reference import Noise, Values, larger
from porter.parity.verdict import Verdict
from porter.parity.weight_causes import rounded_to
from porter.text import listed

# A relation holds if the difference that it leaves is at most this multiple of the limit for the same function (it
# rounds a few times more), and at most this share of the difference before
ROUNDS, LEFT = 16.0, 1e-2
MOST_KEYS = 7  # rows, after the first, that decide how columns are sorted
MOST_SHIFTS = 16  # places at which a rolled vector may begin, if its first value occurs several times


class Foreign:
    """A foreign port's run on images of ``size``: its layers, and what it returns. The latter decides."""

    def __init__(self, name: str, recording: Recording, returned: Returned, size: Size) -> None:
        self.name, self.recording, self.returned, self.size = name, recording, returned, size
        self.operations = Operations(recording, returned.background)
        self.judged_as: set[str] = set()

    def at(self, name: str, reference: Values, judge: Judge) -> list[Found]:
        """What is returned, or else computed, with the values of the endpoint ``name``."""
        found = self.returned.offer(name, reference, judge)
        self.judged_as |= {one.row.endpoint for one in found}
        inside = self.operations.at(name, reference, judge)
        return found or ([inside] if inside else [])

    def rest(self, judge: Judge, verdict: Verdict) -> list[Found]:
        """What is returned and is no endpoint, and the first layer that differs, if that explains it.

        Raises ParityError if nothing that is returned can be judged.
        """
        verdict.remarks += [said for said in self.recording.remarks if said not in verdict.remarks]
        found, wrong = self.returned.rest(self.size, judge)
        others = [f"{own_name} {list(output.best.shape)}" for own_name, output in self.returned.left]
        if not (self.judged_as or found or wrong):
            raise ParityError(f"{self.name}: returns {listed(others, 4)}, which no output of the source's network fits")
        if others and (said := f"not compared, for want of such an output: {listed(others, 4)}") not in verdict.remarks:
            verdict.remarks.append(said)
        for one, relation in wrong:
            if relation is not None:
                verdict.returned += [relation] if relation not in verdict.returned else []
            elif one.row.endpoint in self.operations.matched:
                verdict.right_up_to = one.row.endpoint
            else:
                first = self.operations.first_difference(judge)
                found += [first] if first is not None and not first.row.passed else []
            found.append(one)
        self.judged_as |= {one.row.endpoint for one in found if one.returned}
        if self.judged_as & set(CLASS_ENDPOINTS):  # logits or probabilities: the other is not missed
            verdict.unmatched[:] = [name for name in verdict.unmatched if name not in CLASS_ENDPOINTS]
        return found

    def close(self) -> None:
        """Stop the computation."""
        self.recording.close()


class Returned:
    """The tensors that a port returns. Each must be an endpoint, or what the source's head makes of the last endpoints.

    ``background`` is the class that a port may have left out. ``keep``: values of a recorded reference, 0 for all.
    """

    def __init__(
        self, returned: Sequence[tuple[str, Output]], network: Network, classes: int, background: int | None, keep: int
    ) -> None:
        self.left = list(returned)
        self.network, self.background, self.keep = network, background, keep
        self.nodes = nodes(network, classes)
        names = endpoint_names(network, classes)
        predictors = network.head.predictors(self.nodes) if network.head else ()
        self.last = set(predictors or CLASS_ENDPOINTS) | {names[-1]}
        self.expected: list[Expected] = []

    def offer(self, name: str, values: Values, judge: Judge) -> list[Found]:
        """The tensors that are the endpoint ``name``. The others are kept, and compared with later endpoints."""
        one = Expected(name, values)
        found = self._taken([one], judge)
        if name in self.last or len(squeezed(values.values.shape)) == 2 or self._closest_so_far(one):
            self.expected.append(one)
        return found

    def rest(self, size: Size, judge: Judge) -> tuple[list[Found], list[tuple[Found, str | None]]]:
        """The tensors that the head makes of the last endpoints, for images of ``size``; and those that are wrong.

        The latter beside the closest that the source gives, with their relation in words, None if it is not known.
        """
        if not self.keep:
            made = list(_made(self.network, self.nodes, self.expected, size))
            self.expected += made
        found = self._taken(self.expected, judge)
        wrong = []
        for own_name, output in list(self.left):
            fitting = [pair for one in self.expected if (pair := self._fitting(one, output))]
            if not fitting:
                continue
            self.left.remove((own_name, output))
            names = {one.name for one, _ in fitting}
            if names & self.last:
                fitting = [(one, shown) for one, shown in fitting if one.name in self.last]
            rows = [judge(one.name, one.values, shown)._replace(port_name=own_name) for one, shown in fitting]
            told = [_relation(one, shown, row) for (one, shown), row in zip(fitting, rows, strict=True)]
            distances = [apart(shown.best, one.values.values) for one, shown in fitting]
            best = min(range(len(rows)), key=lambda number: (told[number] is None, distances[number]))
            one, shown = fitting[best]
            wrong.append((Found(rows[best], shown, one.values.values), told[best]))
        return found, wrong

    def _taken(self, expected: Sequence[Expected], judge: Judge) -> list[Found]:
        found = []
        for own_name, output in list(self.left):
            for one in expected:
                fitting = self._fitting(one, output)
                if fitting is None:
                    continue
                row = judge(one.name, fitting[0].values, fitting[1])._replace(port_name=own_name)
                if row.passed or row.same_function:
                    self.left.remove((own_name, output))
                    found.append(Found(row, fitting[1], fitting[0].values.values))
                    break
        return found

    def _closest_so_far(self, one: Expected) -> bool:
        """Whether a map that was returned is closer to ``one`` than to those before, which are then forgotten."""
        closer = False
        for _, output in self.left:
            fitting = self._fitting(one, output)
            if fitting is None or fitting[1].best.ndim == 2:
                continue
            distance = apart(fitting[1].best, fitting[0].values.values)
            before = [(other, pair) for other in self.expected if (pair := self._fitting(other, output))]
            if all(distance < apart(pair[1].best, pair[0].values.values) for _, pair in before):
                self.expected = [
                    other
                    for other in self.expected
                    if other.name in self.last or all(other is not o for o, _ in before)
                ]
                closer = True
        return closer

    def _fitting(self, one: Expected, output: Output) -> tuple[Expected, Output] | None:
        """Both in one shape, without the background class if the port lacks it; None where that cannot be."""
        found = [output]
        if output.best.ndim == 4:
            found.append(output.mapped(lambda values: values.transpose(0, 2, 3, 1)))
        if self.keep:
            found = [shown.thinned(self.keep) for shown in found]
        for values in as_ported(one.name, one.values, self.background):
            for shown in found:
                if squeezed(shown.best.shape) == squeezed(values.values.shape):
                    return one._replace(values=values), shown.reshaped(values.values.shape)
        return None


def _made(network: Network, every: Sequence[Node], expected: Sequence[Expected], size: Size) -> Iterator[Expected]:
    """What a head makes of its last endpoints: a segmenter's logits of every pixel, a detector's rows and boxes.

    The errors of endpoints are put through the head as well.
    """
    known = {one.name: one.values for one in expected}
    if network.head is None or not known.keys() >= (predictors := network.head.predictors(every)).keys():
        return
    parts = {name: known[name] for name in predictors}
    made = network.head.made({name: one.values for name, one in parts.items()}, every, size)
    noises = [one.noise for one in parts.values() if one.noise]
    error = reduce(larger, noises) if noises else None
    moved = [
        network.head.made({name: one.values + step for name, one in parts.items()}, every, size) for step in error or ()
    ]
    for name, values in made.items():
        distances = [np.abs(other[name] - values) for other in moved]
        noise = None
        if distances:
            noise = Noise(float(np.sqrt(np.mean(np.square(distances[0])))), float(distances[1].max(initial=0.0)))
        yield Expected(name, Values(values, noise))


def _relation(one: Expected, output: Output, row: Row) -> str | None:
    """How a returned tensor is related to the expected one, in words; None if in no known way."""
    limit = row.function_limit if output.exact is not None or row.allowed is None else row.allowed.largest
    # A network that is slightly wrong gives almost its logits: what explains a difference leaves little of it
    limit = min(ROUNDS * limit, LEFT * apart(output.best, one.values.values))
    noun = {"Logits": "logits", "Predictions": "probabilities"}.get(one.name, one.name)
    width = one.values.values.shape[-1]
    expected, found = (values.astype(np.float64).reshape(-1, width) for values in (one.values.values, output.best))
    told = _of_rows(expected, found, noun, limit)
    if told is None and one.values.values.ndim == 3:  # (N, boxes, numbers)
        theirs, ours = (values.astype(np.float64)[0].T for values in (one.values.values, output.best))
        told = _reordered(theirs, ours, f"{noun} with the boxes", limit)
    return told


def _of_rows(expected: np.ndarray, found: np.ndarray, noun: str, limit: float) -> str | None:
    """A relation of ``found`` to ``expected``, both (rows, classes)."""
    if not np.isfinite(found).all() or expected.shape[1] < 2:
        return None
    shifted = expected - expected.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        known = {
            f"its {noun}": expected,
            f"the log-softmax of its {noun}": log_softmax,
            f"the softmax of its {noun}": np.exp(log_softmax),
            f"the sigmoid of its {noun}": 1 / (1 + np.exp(-expected)),
            f"its {noun} minus their mean": expected - expected.mean(1, keepdims=True),
            f"its {noun} divided by their length": expected / np.where(length, length, 1),
        }
    for words, values in known.items():
        if apart(found, values) <= limit:
            return words
        if dtype := rounded_to(found, values):
            return f"{words}, rounded to {dtype}"
    distance = found - expected
    if apart(found - distance.mean(), expected) <= limit:
        return f"its {noun} {'minus' if distance.mean() < 0 else 'plus'} {abs(distance.mean()):.4g}"
    if apart(found - distance.mean(1, keepdims=True), expected) <= limit:
        return f"its {noun} shifted by another constant for every image"
    factor = float((found * expected).sum() / ((expected * expected).sum() or 1.0))
    if factor and apart(found / factor, expected) <= limit:
        return f"its {noun} times {factor:.4g}"
    longer = float(np.linalg.norm(found) / (np.linalg.norm(expected) or 1.0))
    for factor in (1.0, longer, -longer):
        if told := _reordered(expected * factor, found, noun, limit):
            return told if factor == 1 else f"{told}, times {factor:.4g}"
    return None


def _reordered(expected: np.ndarray, found: np.ndarray, noun: str, limit: float) -> str | None:
    """Whether ``found`` is ``expected``, both (rows, places), with the places rolled or in another order."""
    scale = np.abs(expected).max(initial=0.0) or 1.0
    begins = np.flatnonzero((np.abs(found - expected[:, :1]) <= limit * scale).all(0))[:MOST_SHIFTS]
    for places in begins.tolist():
        if places and apart(found, np.roll(expected, places, 1)) <= limit:
            width = expected.shape[1]
            return f"its {noun} rolled by {places if places <= width // 2 else places - width}"
    order, theirs = (np.lexsort(values[MOST_KEYS::-1]) for values in (found, expected))
    if apart(found[:, order], expected[:, theirs]) <= limit:
        return f"its {noun} in another order"
    return None
