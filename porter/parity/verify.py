"""``verify``: run a port and its reference on the same inputs and compare every endpoint."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from porter.artifacts.artifact import ArtifactFile, find_artifact
from porter.errors import ParityError
from porter.mapping.axes import to_target
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.mapping.schema import VariantMapping
from porter.models.create import open_model
from porter.network.network import Network
from porter.network.node import Size
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_names
from porter.network.spec import Input
from porter.parity.candidates.candidate import QUESTIONS, Candidate, Output, Question
from porter.parity.candidates.choose import open_candidate
from porter.parity.candidates.match import Found, Named
from porter.parity.candidates.own import deployed as in_deployed_form
from porter.parity.candidates.own import quantised
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
from porter.parity.device import on_device, reduced_precision, tf32_cause
from porter.parity.diagnosis import Target, explained
from porter.parity.evidence import Evidence
from porter.parity.references.choose import open_reference, training_reference
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
from porter.parity.samples import Sample, noise, photos, structured
from porter.parity.training import BATCH, check_step, refuse_untrainable, step_size
from porter.parity.verdict import Cause, Verdict
from porter.parity.weight_causes import weight_causes
from porter.port import Port, plan_opened, plan_port
from porter.sources.weights import Weights

Dtype = Literal["both", "float64", "float32"]
Diagnose = Literal["quick", "all"]
Progress = Callable[[str, str], None]  # the sample and the endpoint just compared
ASKED: dict[Dtype, frozenset[Question]] = {
    "both": QUESTIONS,
    "float64": frozenset(("function",)),
    "float32": frozenset(("rounding",)),
}

QUICKLY = 10.0  # seconds that a diagnosis takes at most, unless all is asked for

# Compared besides the training size if the reference takes any: odd, and non-square with odd and even sides.
OTHER_SIZES: tuple[Size, ...] = ((225, 225), (160, 193))


class Inputs(NamedTuple):
    """What both sides run on: noise and structured images at ``sizes``, or the photos at ``images``."""

    sizes: tuple[Size, ...] | None = None
    images: PathLike | None = None
    seed: int = 0


DEFAULT_INPUTS = Inputs()


class Against(NamedTuple):
    """What a port is compared with, and how; see ``verify``."""

    reference: str = "auto"
    dtype: Dtype = "both"
    inputs: Inputs = DEFAULT_INPUTS
    weights_file: PathLike | None = None
    train: bool = False


DEFAULT_COMPARISON = Against()


def verify(
    checkpoint: PathLike,
    artifact: PathLike | None = None,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    layout: ArtifactLayout = "timm",
    keep_background: bool = False,
    fold_bn: bool = False,
    fake_quant: bool | None = None,
    backbone: bool = False,
    reference: str = "auto",
    dtype: Dtype = "both",
    sizes: Sequence[Size] | None = None,
    images: PathLike | None = None,
    seed: int = 0,
    evidence: Evidence | None = None,
    deployed: bool = False,
    weights_file: PathLike | None = None,
    train: bool = False,
    device: str | None = None,
    diagnose: Diagnose = "quick",
    progress: Progress | None = None,
) -> Verdict:
    """Compare a port of ``checkpoint`` with TensorFlow, endpoint by endpoint: the same function, and as exact?

    Args:
        checkpoint: What ``open_checkpoint`` takes.
        artifact: The port to check: a ``.pth`` or ``.safetensors``, ``timm:NAME``, ``.onnx``, ``.pt2``, another
            TensorFlow source, or ``file.py:callable``. None: what ``convert`` would write.
        variant: If None, found from the shapes.
        mapping: Your own mapping file.
        weights: As for ``convert``.
        layout: As for ``convert``.
        keep_background: As for ``convert``.
        fold_bn: As for ``convert``.
        fake_quant: A source trained for 8 bits is compared in 8 bits, unless this is False or the artifact is its float
            network.
        backbone: Compare the network inside a larger model.
        reference: ``auto``, ``frozen``, ``meta``, ``keras``, ``tflite``, ``tf.nn`` or an ``.npz``.
        dtype: ``float64`` asks whether it is the same function, ``float32`` whether it is as exact as TensorFlow's own
            float32, ``both`` both.
        sizes: Image sizes, (height, width) each.
        images: Photos (a file or a folder) instead of noise and structured images.
        seed: Seed of the noise images.
        evidence: Filled with what a report shows.
        deployed: Compute the port's float32 with the inference form, ``porter.deploy``.
        weights_file: The state dict for ``timm:NAME``.
        train: Compare a step of training instead: statistics of batch norms, outputs, loss and gradients.
        device: Where the port runs, such as ``cuda``. None: on the CPU, as the reference does.
        diagnose: If there is no parity, look for known mistakes for 10 s (``quick``), or for all of them (``all``).
        progress: ``progress(sample, endpoint)`` is called after each endpoint.

    Returns:
        The verdict, passed or not.

    Raises:
        PorterError: If no comparison can be made.

    Example:
        >>> verdict = porter.verify(source, reference=str(source / "expected.npz"))
        >>> verdict.passed, len(verdict.worst_rows())
        (True, 50)
    """
    options = PortOptions(variant, mapping, weights, layout, keep_background, None, fold_bn, fake_quant, backbone)
    inputs = Inputs(None if sizes is None else tuple(sizes), images, seed)
    if train and (deployed or images is not None):
        raise ParityError(f"{checkpoint}: a step of training is compared on noise, without deploy and images")
    check = open_check(checkpoint, artifact, options, Against(reference, dtype, inputs, weights_file, train))
    if deployed:
        if check.candidate.model is None or check.verdict.fake_quant or dtype == "float64":
            raise ParityError(f"{checkpoint}: only our own port has an inference form, and only in float32")
        check = check._replace(candidate=in_deployed_form(check.candidate))
    if device is not None:
        check = check._replace(candidate=on_device(check.candidate, device))
        check.verdict.environment["device"] = device

    def run(check: Check, evidence: Evidence | None = None, progress: Progress | None = None) -> Verdict:
        if not train:
            return run_check(check, inputs, evidence, progress)
        assert check.port is not None
        return check_step(
            *(check.port, check.candidate, check.reference, check.questions, check.verdict, inputs.sizes, seed)
        )

    verdict = run(check, evidence, progress)
    if device is not None:
        again = replace(verdict, rows=[], images=0, top1_agree=0, top5_agree=0, unmatched=[], causes=[], remarks=[])
        verdict.causes += tf32_cause(verdict, lambda: run(check._replace(verdict=again)))
    if not (verdict.passed or verdict.fake_quant or verdict.causes or train):
        _find_causes(check, inputs.sizes, QUICKLY if diagnose == "quick" else math.inf)
    return verdict


def _find_causes(check: Check, sizes: Sequence[Size] | None, seconds: float) -> None:
    """Add to the verdict what explains the difference: in the weights, or else in what our network would compute."""
    port, candidate, verdict = check.port, check.candidate, check.verdict
    if port is None or verdict.returned:
        return
    if verdict.as_exact is False and verdict.same_function is not False:
        verdict.causes = [Cause((words,)) for words in reduced_precision(candidate.device)]
        if verdict.causes:
            return
    changed = candidate.changed or (candidate.weights.changed if candidate.weights else ())
    if changed and candidate.weights:
        verdict.causes, all_of_it = weight_causes(port, candidate.weights, changed)
        if all_of_it:
            return
    if not port.classes or port.network.head is not None:
        return
    target = _target(check, sizes)
    if target is not None:
        found, verdict.untried = explained(port, *target, seconds)
        verdict.causes += found


def _target(check: Check, sizes: Sequence[Size] | None) -> tuple[Target, np.ndarray] | None:
    """Logits to explain, the port's, or the reference's if the port is as planned, and the images that it got."""
    candidate, reference = check.candidate, check.reference
    size = reference.size or candidate.size or (sizes[0] if sizes else check.mapping.input.sides)
    images = reference.samples[0].images if reference.samples else noise(size, seed=0).images
    given = reference.prepare(images)
    if candidate.planned:
        values = dict(reference.run(images, ["Logits"])).get("Logits")
        if values is None or values.values.ndim != 2:
            return None
        return Target(values.values, exact=reference.precision == "float64"), given
    found = candidate.run(given, candidate.answers)
    if candidate.record is not None:
        found = iter(candidate.record(given, candidate.answers, 0).returned)
    outputs = [one for name, one in found if one.best.ndim == 2 and (candidate.record or name == "Logits")]
    return (Target(outputs[-1].best, exact=outputs[-1].exact is not None), given) if outputs else None


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


def open_check(
    checkpoint: PathLike, artifact: PathLike | None, options: PortOptions, against: Against = DEFAULT_COMPARISON
) -> Check:
    """Open both sides. Raises PorterError if no comparison can be made."""
    port = plan_port(checkpoint, options)
    named: PathLike | ArtifactFile | None = artifact
    if artifact is not None and not os.fspath(artifact).startswith("timm:"):
        named = find_artifact(artifact) or artifact
    if port.plan.ranges and options.fake_quant is None and named is not None and not _has_ranges(named):
        port = plan_opened(port.checkpoint, port.chosen, replace(options, fake_quant=False))
    if against.train:
        refuse_untrainable(port)
        size = step_size(port, against.inputs.sizes)
        reference = training_reference(against.reference, port, (BATCH, size))
    else:
        reference = open_reference(against.reference, port, against.inputs.sizes)
    if port.plan.ranges:
        source = port.checkpoint if named is None else named
        candidate = quantised(open_model(source, replace(options, fake_quant=True)), artifact)
    else:
        candidate = open_candidate(named, port, options.mapping, against.weights_file, against.inputs.sizes)
    verdict = Verdict(
        variant=port.mapping.variant,
        checkpoint=str(checkpoint),
        artifact=None if artifact is None else str(artifact),
        reference=reference.name,
        dtype=against.dtype,
        environment=environment(reference),
        digests=port.checkpoint.digests() | candidate.digests,
        fake_quant=bool(port.plan.ranges),
        dequantized=port.plan.dequantized,
        precision=reference.precision,
        rounded_weights=candidate.rounded_weights,
        missing=[name for name in endpoint_names(port.network, port.classes) if name in reference.missing],
        changed=list(candidate.changed),
        assumed=_assumed(port, reference),
        training=against.train,
        variables={step.target: step.source for step in port.plan.steps if step.target in candidate.changed},
    )
    questions = asked(against.dtype, candidate, reference)
    return Check(port, port.mapping, port.network, candidate, reference, questions, verdict, _weight_lengths(port))


def _weight_lengths(port: Port) -> np.ndarray | None:
    """The length of each class's weights in a classifier of one layer; None if the port has another."""
    step = next((step for step in port.plan.steps if step.target == "classifier.weight"), None)
    if step is None:
        return None
    weights = to_target(step.axes, port.checkpoint[step.source].read()).astype(np.float64)
    lengths: np.ndarray = np.linalg.norm(weights.reshape(len(weights), -1), axis=1)
    return lengths


def _assumed(port: Port, reference: Reference) -> list[str]:
    """The facts that both sides have from the mapping: a graph of the source's own states the others."""
    shared = reference.name.startswith("tf.nn")
    found = [fact for fact in port.assumed if shared or fact == "scaling"]
    in_training = shared and reference.name.endswith("training mode") and port.checkpoint.format != "keras"
    return [*found, "batch norm decay"] if in_training else found


def _has_ranges(named: PathLike | ArtifactFile) -> bool:
    """Whether an artifact computes 8 bits by default; foreign ports never do."""
    metadata = named.artifact.metadata if isinstance(named, ArtifactFile) else None
    return bool(metadata and metadata.ranges)


def asked(dtype: Dtype, candidate: Candidate, reference: Reference) -> frozenset[Question]:
    """The questions of ``dtype`` that both sides can answer. Raises ParityError if there are none."""
    if reference.precision == "levels":
        return frozenset(("function",))
    found = ASKED[dtype] & candidate.answers
    if reference.precision == "float32" and not reference.samples:
        found &= {"rounding"}  # an interpreter has no float64, but two sets of kernels
    elif reference.precision == "float32":  # an old record has neither: one comparison, of the port's best
        best: Question = "rounding" if candidate.deployed or "function" not in candidate.answers else "function"
        found = frozenset((best,))
    if not found:
        raise ParityError(
            f"{reference.name} gives {reference.precision} and {candidate.name or 'the port'} answers "
            f"{', '.join(sorted(candidate.answers))}: that leaves nothing to ask in {dtype}"
        )
    return found


def run_check(
    check: Check, inputs: Inputs = DEFAULT_INPUTS, evidence: Evidence | None = None, progress: Progress | None = None
) -> Verdict:
    """Compare on every sample; ``progress`` as for ``verify``."""
    fixed = check.reference.size or check.candidate.size
    for sample in _samples(check.reference, fixed, check.mapping.input, inputs):
        check_sample(check, sample, evidence, progress)
    return check.verdict


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
    inherited, before = NO_NOISE, NO_NOISE

    def judge(name: str, theirs: Values, ours: Output) -> Row:
        try:
            return _row(check, name, sample.label, theirs, ours, inherited)
        except ValueError as error:
            raise ParityError(f"{verdict.checkpoint}: {error}") from error

    side = _side(check, given, names)
    counted = Counted(check, sample, None if reference.keep else evidence, progress)
    for name, theirs in reference.run(sample.images, names):
        theirs = _with_expected_noise(check, name, theirs, before)
        found = side.at(name, theirs, judge)
        counted.add(found)
        if not found and name not in verdict.unmatched:
            verdict.unmatched.append(name)
        before, inherited = theirs.noise or NO_NOISE, larger(inherited, over_scale(theirs))
        del theirs, found  # free them before the next endpoint
    counted.add(side.rest(judge, verdict))
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


class Counted:
    """Adds the rows of one sample to a verdict, and what they say of the classes."""

    def __init__(self, check: Check, sample: Sample, evidence: Evidence | None, progress: Progress | None) -> None:
        self.verdict, self.sample, self.evidence, self.progress = check.verdict, sample, evidence, progress
        self.classified = False

    def add(self, found: Iterable[Found]) -> None:
        """Add a row for each of ``found``; classes are counted once, of what a caller gets."""
        for row, output, reference, returned in found:
            self.verdict.rows.append(row)
            if self.progress is not None:
                self.progress(self.sample.label, row.endpoint)
            ours = output.exact if output.single is None or row.same_function is False else output.single
            if ours is None:
                continue
            if self.evidence is not None:
                self.evidence.compared(row, ours, reference)
            if returned and row.endpoint in CLASS_ENDPOINTS and not self.classified:
                self.classified = True
                self._classes(row, ours, reference)

    def _classes(self, row: Row, ours: np.ndarray, theirs: np.ndarray) -> None:
        if self.evidence is not None and row.endpoint == "Logits":
            self.evidence.classified(self.sample.label, self.sample.images, ours, theirs)
        self.verdict.images += len(ours)
        self.verdict.top1_agree += _count_agreeing(ours, theirs, 1)
        self.verdict.top5_agree += _count_agreeing(ours, theirs, 5)


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
    if ours.noise is not None:
        row = row.with_port_noise(ours.noise)
    return row.with_rounded_weights() if check.candidate.rounded_weights else row


def _count_agreeing(ours: np.ndarray, theirs: np.ndarray, k: int) -> int:
    return sum(a == b for a, b in zip(top_k(ours, k), top_k(theirs, k), strict=True))


def _samples(reference: Reference, fixed: Size | None, spec: Input, inputs: Inputs) -> Iterator[Sample]:
    sizes, images, seed = inputs
    if reference.samples:
        if sizes or images:
            raise ParityError(f"{reference.name} has its own inputs; leave out sizes and images")
        yield from reference.samples
        return
    if fixed and any(size != fixed for size in sizes or ()):
        raise ParityError(f"{reference.name}: runs at {fixed[0]}x{fixed[1]} only; leave out the size")
    if not sizes:
        sizes = (fixed,) if fixed else (spec.sides, *(() if images else OTHER_SIZES))
    for size in sizes:
        if images:
            yield from photos(Path(images), size, spec)
        else:
            yield noise(size, seed)
            yield structured(size)


def environment(reference: Reference) -> dict[str, str]:
    """Versions of Python, the platform and the packages that compute."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: version(name) for name in ("mnv3-port", "torch", "numpy")}
    return found | reference.versions
