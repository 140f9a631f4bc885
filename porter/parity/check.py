"""One sample through both sides of a comparison, endpoint by endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.mapping.schema import VariantMapping
from porter.network.network import Network
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_names
from porter.parity.candidates.candidate import Candidate, Output, Question
from porter.parity.candidates.match import Found, Named
from porter.parity.compare import (
    NO_NOISE,
    RECORDED_ENDPOINTS,
    RECORDED_LOGITS,
    SAME_FUNCTION,
    SAME_LEVEL,
    Row,
    compare,
    top_k,
)
from porter.parity.evidence import Evidence
from porter.parity.references.reference import (
    FEWEST_VALUES,
    Noise,
    Reference,
    Values,
    larger,
    noise_of_dense,
    noise_of_softmax,
    over_scale,
)
from porter.parity.returned import Foreign, Returned
from porter.parity.samples import Sample
from porter.parity.verdict import Verdict
from porter.port import Port

Progress = Callable[[str, str], None]  # the sample and the endpoint just compared


class Check(NamedTuple):
    """Both sides of a comparison, the questions, and the verdict that ``check_sample`` extends.

    ``port`` is None if the source is out of reach and only a record of it is available.
    """

    port: Port | None
    mapping: VariantMapping
    network: Network
    candidate: Candidate
    reference: Reference
    questions: frozenset[Question]
    verdict: Verdict
    weight_lengths: np.ndarray | None = None  # of each class's weights


def check_sample(
    check: Check, sample: Sample, evidence: Evidence | None = None, progress: Progress | None = None
) -> None:
    """Run both sides on ``sample`` and add a row per endpoint to the verdict.

    They run side by side, one endpoint at a time, so memory holds one pair, and some values of each operation of a
    foreign port. Raises ParityError if shapes differ.
    """
    network, reference, verdict = check.network, check.reference, check.verdict
    names = endpoint_names(network, classes=1)
    given = reference.prepare(sample.images)
    if not verdict.received:
        verdict.received = _received(check, sample.images, given)
    if reference.keep:
        evidence = None
    inherited, before = NO_NOISE, NO_NOISE
    classified = False

    def judge(name: str, theirs: Values, ours: Output) -> Row:
        try:
            return _row(check, name, sample.label, theirs, ours, inherited)
        except ValueError as error:
            raise ParityError(f"{verdict.artifact or verdict.checkpoint}: {error}") from error

    def count(found: Iterable[Found]) -> None:
        """Add a row for each of ``found``; classes are counted once, of what a caller gets."""
        nonlocal classified
        for row, output, theirs, returned in found:
            verdict.rows.append(row)
            if progress is not None:
                progress(sample.label, row.endpoint)
            ours = output.exact if output.single is None or row.same_function is False else output.single
            if ours is None:
                continue
            if evidence is not None:
                evidence.compared(row, ours, theirs)
            if returned and row.endpoint in CLASS_ENDPOINTS and not classified:
                classified = True
                if evidence is not None and row.endpoint == "Logits":
                    evidence.classified(sample.label, sample.images, ours, theirs)
                verdict.images += len(ours)
                verdict.top1_agree += _count_agreeing(ours, theirs, 1)
                verdict.top5_agree += _count_agreeing(ours, theirs, 5)

    side = _side(check, given, names)
    for name, theirs in reference.run(sample.images, names):
        theirs = _with_expected_noise(check, name, theirs, before)
        found = side.at(name, theirs, judge)
        count(found)
        if not found and name not in verdict.unmatched:
            verdict.unmatched.append(name)
        before, inherited = theirs.noise or NO_NOISE, larger(inherited, over_scale(theirs))
        del theirs, found  # free them before the next endpoint
    count(side.rest(judge, verdict))
    side.close()


def _side(check: Check, given: np.ndarray, names: Sequence[str]) -> Named | Foreign:
    """The candidate's outputs for the images ``given``, to be asked for by endpoint."""
    candidate, background, keep = check.candidate, check.mapping.classes.background, check.reference.keep
    if candidate.record is None:
        return Named(candidate.run(given, check.questions), names, background, keep)
    assert check.port is not None
    recording = candidate.record(given, check.questions, keep)
    returned = Returned(recording.returned, check.network, check.port.classes, background, keep)
    return Foreign(candidate.name, recording, returned, (given.shape[1], given.shape[2]))


def _with_expected_noise(check: Check, name: str, values: Values, before: Noise) -> Values:
    """``values`` of classes with at least the float32 error that follows from that of the endpoint before."""
    if values.noise is None or name not in CLASS_ENDPOINTS:
        return values
    if name == "Predictions":
        return values._replace(noise=larger(values.noise, noise_of_softmax(values.values, before)))
    lengths = check.weight_lengths
    return values if lengths is None else values._replace(noise=larger(values.noise, noise_of_dense(lengths, before)))


def _received(check: Check, images: np.ndarray, given: np.ndarray) -> str:
    """What each side gets, in words. Raises ParityError where that is no image any more."""
    values = len(np.unique(given[:1]))
    if values < min(FEWEST_VALUES, len(np.unique(images[:1]))):
        raise ParityError(f"{check.verdict.checkpoint}: its network gets {values} different values from an image")
    port = f"{given.min():.4g} to {given.max():.4g}, {given.dtype}"
    return f"reference: {check.reference.takes or 'the same'}; port: {port}"


def _row(check: Check, name: str, label: str, theirs: Values, ours: Output, inherited: Noise) -> Row:
    limit = SAME_FUNCTION
    if check.reference.precision == "levels":
        limit = SAME_LEVEL
    elif check.reference.precision == "float32":
        limit = RECORDED_LOGITS if name == "Logits" else RECORDED_ENDPOINTS
    if theirs.noise is None and ours.exact is None:
        ours = ours._replace(exact=ours.single)
    row = compare(name, label, theirs, ours, limit, inherited)
    return row.with_rounded_weights() if check.candidate.rounded_weights else row


def _count_agreeing(ours: np.ndarray, theirs: np.ndarray, k: int) -> int:
    return sum(a == b for a, b in zip(top_k(ours, k), top_k(theirs, k), strict=True))
