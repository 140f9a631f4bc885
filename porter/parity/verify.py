"""``verify``: run a port and its reference on the same inputs and compare every endpoint."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from porter.artifacts.artifact import ArtifactFile, find_artifact
from porter.errors import ParityError
from porter.mapping.axes import to_target
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.models.create import open_model
from porter.network.node import Size
from porter.network.nodes import endpoint_names
from porter.parity.candidates.candidate import QUESTIONS, Candidate, Question
from porter.parity.candidates.foreign import open_candidate
from porter.parity.candidates.own import deployed as in_deployed_form
from porter.parity.candidates.own import quantised
from porter.parity.check import Check, Progress, check_sample
from porter.parity.device import on_device, reduced_precision, tf32_cause
from porter.parity.diagnosis import Target, explained
from porter.parity.evidence import Evidence
from porter.parity.references.choose import open_reference, training_reference
from porter.parity.references.reference import Reference
from porter.parity.samples import Sample, noise, photos, structured
from porter.parity.training import BATCH, check_step, refuse_untrainable, step_size
from porter.parity.verdict import Cause, Verdict
from porter.parity.weight_causes import weight_causes
from porter.port import Port, plan_opened, plan_port
from porter.sources import Checkpoint
from porter.sources.weights import Weights

Dtype = Literal["both", "float64", "float32"]
Diagnose = Literal["quick", "all"]
ASKED: dict[Dtype, frozenset[Question]] = {
    "both": QUESTIONS,
    "float64": frozenset(("function",)),
    "float32": frozenset(("rounding",)),
}

QUICKLY = 10.0  # seconds that a diagnosis takes at most, unless all is asked for

# Compared besides the training size if the reference takes any: odd, and non-square with odd and even sides.
OTHER_SIZES: tuple[Size, ...] = ((225, 225), (160, 193))


class Against(NamedTuple):
    """What a port is compared with, and on which images; see ``verify``."""

    reference: str = "auto"
    dtype: Dtype = "both"
    sizes: tuple[Size, ...] | None = None
    images: PathLike | None = None
    seed: int = 0
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
    against = Against(reference, dtype, None if sizes is None else tuple(sizes), images, seed, weights_file, train)
    if train and (deployed or images is not None):
        raise ParityError(f"{checkpoint}: a step of training is compared on noise, without deploy and images")
    check = open_check(checkpoint, artifact, options, against)
    if deployed:
        if check.candidate.model is None or check.verdict.fake_quant or dtype == "float64":
            raise ParityError(f"{checkpoint}: only our own port has an inference form, and only in float32")
        check = check._replace(candidate=in_deployed_form(check.candidate))
    if device is not None:
        check = check._replace(candidate=on_device(check.candidate, device))
        check.verdict.environment["device"] = device

    def run(check: Check, evidence: Evidence | None = None, progress: Progress | None = None) -> Verdict:
        if train:
            check_step(check, against.sizes, seed)
        else:
            run_check(check, against, evidence, progress)
        return check.verdict

    verdict = run(check, evidence, progress)
    if device is not None:
        again = replace(verdict, rows=[], images=0, top1_agree=0, top5_agree=0, unmatched=[], causes=[], remarks=[])
        verdict.causes += tf32_cause(verdict, lambda: run(check._replace(verdict=again)))
    if not (verdict.passed or verdict.fake_quant or verdict.causes or train):
        _find_causes(check, against.sizes, QUICKLY if diagnose == "quick" else math.inf)
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
    if candidate.weights and candidate.weights.changed:
        verdict.causes, all_of_it = weight_causes(port, candidate.weights)
        if all_of_it:
            return
    if not port.classes or port.network.head is not None:
        return
    target = _target(check, sizes)
    if target is not None:
        found, verdict.untried = explained(port, target, seconds)
        verdict.causes += found


def _target(check: Check, sizes: Sequence[Size] | None) -> Target | None:
    """Logits to explain: the port's, or the reference's if the port is as planned; None if there are none."""
    candidate, reference = check.candidate, check.reference
    size = reference.size or candidate.size or (sizes[0] if sizes else check.mapping.input.sides)
    images = reference.samples[0].images if reference.samples else noise(size, seed=0).images
    given = reference.prepare(images)
    if candidate.model is not None and not candidate.changed:
        values = dict(reference.run(images, ["Logits"])).get("Logits")
        if values is None or values.values.ndim != 2:
            return None
        return Target(given, values.values, exact=reference.precision == "float64")
    found = candidate.run(given, candidate.answers)
    if candidate.record is not None:
        found = iter(candidate.record(given, candidate.answers, 0).returned)
    outputs = [one for name, one in found if one.best.ndim == 2 and (candidate.record or name == "Logits")]
    return Target(given, outputs[-1].best, exact=outputs[-1].exact is not None) if outputs else None


def open_check(
    checkpoint: PathLike | Checkpoint,
    artifact: PathLike | None,
    options: PortOptions,
    against: Against = DEFAULT_COMPARISON,
) -> Check:
    """Open both sides, or one if the ``checkpoint`` is open. Raises PorterError if no comparison can be made."""
    port = plan_port(checkpoint, options)
    named: PathLike | ArtifactFile | None = artifact
    if artifact is not None and not os.fspath(artifact).startswith("timm:"):
        named = find_artifact(artifact) or artifact
    if port.plan.ranges and options.fake_quant is None and named is not None and not _has_ranges(named):
        port = plan_opened(port.checkpoint, port.chosen, replace(options, fake_quant=False))
    if against.train:
        refuse_untrainable(port)
        size = step_size(port, against.sizes)
        reference = training_reference(against.reference, port, (BATCH, size))
    else:
        reference = open_reference(against.reference, port, against.sizes)
    if port.plan.ranges:
        source = port.checkpoint if named is None else named
        candidate = quantised(open_model(source, replace(options, fake_quant=True)), artifact)
    else:
        candidate = open_candidate(named, port, options.mapping, against.weights_file, against.sizes)
    verdict = Verdict(
        variant=port.mapping.variant,
        checkpoint=port.checkpoint.given,
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
    return np.linalg.norm(weights.reshape(len(weights), -1), axis=1)


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
    check: Check, against: Against, evidence: Evidence | None = None, progress: Progress | None = None
) -> None:
    """Compare on every sample; ``progress`` as for ``verify``."""
    for sample in _samples(check, against):
        check_sample(check, sample, evidence, progress)


def _samples(check: Check, against: Against) -> Iterator[Sample]:
    reference, spec, sizes, images = check.reference, check.mapping.input, against.sizes, against.images
    fixed = reference.size or check.candidate.size
    if reference.samples:
        if sizes or images:
            raise ParityError(f"{reference.name} has its own inputs; leave out sizes and images")
        yield from reference.samples
        return
    if fixed and any(size != fixed for size in sizes or ()):
        name = reference.name if reference.size else check.candidate.name
        raise ParityError(f"{name}: runs at {fixed[0]}x{fixed[1]} only; leave out the size")
    if not sizes:
        sizes = (fixed,) if fixed else (spec.sides, *(() if images else OTHER_SIZES))
    for size in sizes:
        if images:
            yield from photos(Path(images), size, spec)
        else:
            yield noise(size, against.seed)
            yield structured(size)


def environment(reference: Reference) -> dict[str, str]:
    """Versions of Python, the platform and the packages that compute."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: version(name) for name in ("mnv3-port", "torch", "numpy")}
    return found | reference.versions
