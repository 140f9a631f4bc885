"""``verify``: run the port and its reference on the same inputs and compare every endpoint."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from porter.conversion import PathLike, Port, plan_port
from porter.create import create_model
from porter.errors import ParityError
from porter.images import Size
from porter.loaders.checkpoint import sha256
from porter.loaders.weights import Weights
from porter.mapping.carry_out import carry_out
from porter.mapping.plan import ArtifactLayout
from porter.mapping.schema import Input
from porter.network.deployment import Deployed, deploy
from porter.network.endpoints import capture, endpoint_modules
from porter.network.mobilenet_v3 import MobileNetV3
from porter.parity.compare import compare, top_k
from porter.parity.evidence import Evidence
from porter.parity.references.choose import choose_reference
from porter.parity.references.reference import Reference, thin
from porter.parity.samples import Sample, noise, photos, structured
from porter.parity.verdict import TOLERANCES, Verdict

Dtype = Literal["float32", "float64"]

CLASSES = ("Logits", "Predictions")  # endpoints of shape (N, classes)
# Beside the training size, where the reference takes any: odd, and non-square with odd and even sides.
OTHER_SIZES: tuple[Size, ...] = ((225, 225), (160, 193))


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
    fake_quant: bool = False,
    reference: str = "auto",
    dtype: Dtype = "float32",
    sizes: Sequence[Size] | None = None,
    images: PathLike | None = None,
    seed: int = 0,
    evidence: Evidence | None = None,
    deployed: bool = False,
) -> Verdict:
    """Compare the port of ``checkpoint`` with TensorFlow, endpoint by endpoint.

    ``artifact`` is the file to check; without it, what ``convert`` would write is (``layout``, ``keep_background``,
    ``fold_bn``). ``fake_quant`` compares the 8 bits that the source was trained for; a .tflite of 8 bits needs no
    asking. ``reference``: ``auto``, one of ``choose.KINDS`` or an ``.npz``. Inputs are seeded noise and structured
    images at ``sizes``, or the photos at ``images``; a recorded reference has its own. ``evidence`` collects what a
    report shows; ``deployed`` runs the port as ``porter.deploy`` makes it. Returns the verdict, passed or not. Raises
    PorterError when no comparison can be made.
    """
    check = open_check(
        checkpoint,
        artifact,
        variant,
        mapping=mapping,
        weights=weights,
        layout=layout,
        keep_background=keep_background,
        fold_bn=fold_bn,
        fake_quant=fake_quant,
        reference=reference,
        dtype=dtype,
        sizes=sizes,
    )
    return run_check(check, sizes, images, seed, evidence, deployed)


class Check(NamedTuple):
    """What ``verify`` compares, and the verdict that ``check_sample`` adds to."""

    port: Port
    model: MobileNetV3
    reference: Reference
    verdict: Verdict


def open_check(
    checkpoint: PathLike,
    artifact: PathLike | None = None,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    layout: ArtifactLayout = "timm",
    keep_background: bool = False,
    fold_bn: bool = False,
    fake_quant: bool = False,
    reference: str = "auto",
    dtype: Dtype = "float32",
    sizes: Sequence[Size] | None = None,
) -> Check:
    """Open both sides; arguments as for ``verify``. Raises PorterError when no comparison can be made."""
    port = plan_port(
        checkpoint,
        variant,
        mapping=mapping,
        weights=weights,
        layout=layout,
        keep_background=keep_background,
        fold_bn=fold_bn,
    )
    fake_quant = fake_quant or (port.checkpoint.format == "tflite" and bool(port.plan.ranges))
    if fake_quant:
        model = _quantizing_model(artifact or checkpoint, port, mapping, weights, keep_background)
    else:
        # A trained .tflite's float32 rounding alone comes near the limits; only the interpreter's is to count
        exact: Dtype = "float64" if port.checkpoint.format == "tflite" else dtype
        model = ported_model(port, exact) if artifact is None else _artifact_model(artifact, port, mapping, exact)
    any_size = any(size != _trained(port.mapping.input) for size in sizes or ())
    against = choose_reference(reference, port, dtype, any_size, fake_quant)
    digests = port.checkpoint.digests()
    if artifact is not None:
        digests[Path(artifact).name] = sha256(Path(artifact))
    verdict = Verdict(
        variant=port.mapping.variant,
        checkpoint=str(checkpoint),
        artifact=None if artifact is None else str(artifact),
        reference=against.name,
        dtype=dtype,
        environment=environment(against),
        digests=digests,
        fake_quant=fake_quant,
    )
    return Check(port, model, against, verdict)


def run_check(
    check: Check,
    sizes: Sequence[Size] | None = None,
    images: PathLike | None = None,
    seed: int = 0,
    evidence: Evidence | None = None,
    deployed: bool = False,
) -> Verdict:
    """Compare on every sample; arguments as for ``verify``."""
    mapping = check.port.mapping
    for sample in _samples(check.reference, mapping.input, sizes, images, seed):
        model = _deployed(check.model, sample) if deployed else check.model
        check_sample(check.verdict, model, check.reference, sample, mapping.classes.background, evidence)
    return check.verdict


def check_sample(
    verdict: Verdict,
    model: MobileNetV3 | Deployed,
    reference: Reference,
    sample: Sample,
    background: int | None,
    evidence: Evidence | None = None,
) -> None:
    """Run ``model`` and ``reference`` on ``sample`` and add a row per endpoint to ``verdict``.

    Both run side by side, one endpoint at a time, so that memory holds one pair of them. Raises ParityError where
    shapes differ.
    """
    images = reference.prepare(sample.images)
    names = [*endpoint_modules(model.network, model.num_classes), *(["Predictions"] if model.num_classes else [])]
    expected = reference.run(images, names)
    upcoming: tuple[str, np.ndarray] | None = None
    tolerances = TOLERANCES[verdict.dtype]

    def receive(name: str, tensor: torch.Tensor) -> None:
        nonlocal upcoming
        upcoming = upcoming or next(expected, None)
        if upcoming is None or upcoming[0] != name:  # the reference does not have this one
            return
        theirs, upcoming = upcoming[1], None
        if background is not None and name in CLASSES and theirs.shape[1] == model.num_classes + 1:
            theirs = _without_class(theirs, background, name == "Predictions")
        ours = tensor.permute(0, 2, 3, 1).numpy() if tensor.ndim == 4 else tensor.numpy()
        if reference.keep:
            ours = thin(ours, reference.keep)
        if theirs.ndim == 2 and ours.ndim == 4:  # slim flattens after pooling
            ours = ours.reshape(theirs.shape)
        tolerance = tolerances["logits" if name == "Logits" else "endpoints"]
        try:
            row = compare(name, sample.label, ours, theirs, tolerance)
        except ValueError as error:
            raise ParityError(f"{verdict.checkpoint}: {error}") from error
        verdict.rows.append(row)
        if evidence is not None and not reference.keep:
            evidence.compared(row, ours, theirs)
        if name == "Logits":
            if evidence is not None:
                evidence.classified(sample.label, sample.images, ours, theirs)
            verdict.images += len(ours)
            for k, count in ((1, "top1_agree"), (5, "top5_agree")):
                agreeing = sum(a == b for a, b in zip(top_k(ours, k), top_k(theirs, k), strict=True))
                setattr(verdict, count, getattr(verdict, count) + agreeing)

    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad(), capture(model, receive):
        model(inputs if isinstance(model, Deployed) else inputs.to(next(model.parameters()).dtype))
    if upcoming is not None:
        raise ParityError(f"{verdict.reference}: endpoint {upcoming[0]} comes out of order")


def _deployed(model: MobileNetV3, sample: Sample) -> Deployed:
    try:
        return deploy(model, (sample.images.shape[1], sample.images.shape[2]))
    except ValueError as error:
        raise ParityError(f"--deploy: {error}; leave out --dtype and --fake-quant") from error


def ported_model(port: Port, dtype: Dtype) -> MobileNetV3:
    """The port in memory, as ``convert`` would write it; in eval mode."""
    model = MobileNetV3(port.target_network, port.plan.num_classes).to(getattr(torch, dtype))
    tensors = carry_out(port.plan, port.checkpoint, dtype).tensors
    model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return model.eval()


def _quantizing_model(
    source: PathLike, port: Port, mapping: PathLike | None, weights: Weights, keep_background: bool
) -> MobileNetV3:
    model = create_model(
        port.mapping.variant,
        source,
        mapping=mapping,
        weights=weights,
        keep_background=keep_background,
        fake_quant=True,
    )
    assert isinstance(model, MobileNetV3)
    return model


def _artifact_model(artifact: PathLike, port: Port, mapping: PathLike | None, dtype: str) -> MobileNetV3:
    # In float64 the rounding of a folded float32 weight would show; undone, the weights are the checkpoint's.
    layout: ArtifactLayout | None = "slim" if dtype == "float64" else None
    model = create_model(port.mapping.variant, artifact, mapping=mapping, layout=layout)
    assert isinstance(model, MobileNetV3)
    return model.to(getattr(torch, dtype))


def _trained(spec: Input) -> Size:
    return spec.size, spec.size


def _samples(
    reference: Reference,
    spec: Input,
    sizes: Sequence[Size] | None,
    images: PathLike | None,
    seed: int,
) -> list[Sample]:
    if reference.samples:
        if sizes or images:
            raise ParityError(f"{reference.name} has its own inputs; leave out sizes and images")
        return list(reference.samples)
    if reference.size and any(size != reference.size for size in sizes or ()):
        raise ParityError(
            f"{reference.name} takes {reference.size[0]}x{reference.size[1]} alone; leave out the size, or use "
            "--reference tf.nn"
        )
    if not sizes:
        sizes = [reference.size] if reference.size else [_trained(spec), *OTHER_SIZES]
    if images:
        return [photos(Path(images), size, spec) for size in sizes]
    return [sample for size in sizes for sample in (noise(size, seed), structured(size))]


def _without_class(values: np.ndarray, dropped: int, normalize: bool) -> np.ndarray:
    """Logits or predictions (N, classes) as a classifier without class ``dropped`` gives them."""
    rest = np.delete(values, dropped, axis=1)
    return rest / rest.sum(1, keepdims=True) if normalize else rest


def environment(reference: Reference) -> dict[str, str]:
    """Versions of what computes."""
    names = ["mnv3-port", "torch", "numpy"]
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: version(name) for name in names}
    if not reference.samples:
        from porter.parity.references.live_tensorflow import tensorflow

        found["tensorflow"] = tensorflow().__version__
    return found
