"""``release``: convert, verify and, on parity, write the folder to publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from porter.artifacts.artifact import (
    CARD,
    CONFIG,
    EVALUATION,
    MAPPING,
    PARITY,
    REFERENCE,
    REPORT,
    WEIGHTS,
    Artifact,
    find_artifact,
    save_artifact,
)
from porter.artifacts.source import StoredPort, as_source
from porter.errors import NoParityError, PorterError
from porter.evaluation.result import Evaluation
from porter.evaluation.run import evaluate_classifier
from porter.mapping.files import PLAIN_NAME, load_mapping, standalone
from porter.mapping.options import PathLike, PortOptions
from porter.network.nodes import endpoint_names
from porter.parity.check import Check, Progress
from porter.parity.evidence import Evidence
from porter.parity.references.recorded import record
from porter.parity.samples import noise
from porter.parity.verdict import Verdict
from porter.parity.verify import Against, open_check, run_check
from porter.photos.labels import class_labels
from porter.port import Port, carry_out_port, plan_port
from porter.releases import folder as contents
from porter.releases.card import STATISTICS, Card, config, model_card
from porter.releases.exports import Export, write_exports
from porter.releases.naming import architecture, has_released_form, plain_name
from porter.report.html import parity_html
from porter.sources.checkpoint import sha256
from porter.sources.weights import Weights
from porter.text import json_text

KEEP = 1024  # values recorded per endpoint: more than the classes, so that logits stay whole


@dataclass(frozen=True)
class Publication:
    """The name of a release and the statements that do not follow from the weights.

    If left out, they are stated only for Google's own checkpoints: for a tarball with the digest ``sha256``, which the
    user has from a place that they trust. ``dataset`` and ``license`` are Hugging Face's identifiers.
    ``evaluate_on``: a folder of labelled images, for the accuracy in the card. ``exports``: further formats.
    """

    name: str | None = None
    license: str | None = None
    dataset: str | None = None
    class_names: tuple[str, ...] = ()
    evaluate_on: Path | None = None
    exports: tuple[Export, ...] = ()
    sha256: str | None = None


DEFAULT_PUBLICATION = Publication()


class Released(NamedTuple):
    """A release: its folder, variant, verdict, and each export's largest error over the logits' scale."""

    folder: Path
    variant: str
    verdict: Verdict
    exports: dict[str, float]


def release(
    checkpoint: PathLike,
    folder: PathLike,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    keep_background: bool = False,
    fake_quant: bool | None = None,
    reference: str = "auto",
    publication: Publication = DEFAULT_PUBLICATION,
    force: bool = False,
    progress: Progress | None = None,
) -> Released:
    """Convert and verify a checkpoint and, on parity, write a folder to publish: weights, card, checksums, report.

    The reference of an artifact is TensorFlow on its weights, as ``export_tf`` writes them. The verified port is the
    one written.

    Args:
        checkpoint: What ``open_checkpoint`` takes, or an artifact.
        folder: Where to write; it must not exist, or be empty.
        variant: As for ``convert``.
        mapping: As for ``convert``. The folder then holds it.
        weights: As for ``convert``.
        keep_background: As for ``convert``.
        fake_quant: A source that was trained for 8 bits gives 8 bits, unless this is False.
        reference: As for ``verify``.
        publication: Its name, what the card states, and further formats.
        force: Replace an earlier release.
        progress: As for ``verify``.

    Returns:
        The folder, the variant, the verdict, and the error of each further format. Same input, same bytes.

    Raises:
        NoParityError: If the port is not the same function, or not as exact.
        PorterError: On bad input, NaN among it. No folder is left behind.

    Example:
        >>> released = porter.release(source, folder / "dist", reference=str(source / "expected.npz"))
        >>> released.verdict.passed, (released.folder / "model.safetensors").is_file()
        (True, True)
    """
    folder = Path(folder)
    file = find_artifact(checkpoint)
    mapping = mapping or (file.mapping if file else None)
    options = PortOptions(variant, mapping, weights, "timm", keep_background, fake_quant=fake_quant)
    with contents.staged(folder, force) as stage, _one_thread():
        port = plan_port(as_source(file, options) if file else checkpoint, options)
        _check(port, publication)
        arrays, metadata = carry_out_port(port)
        assert metadata is not None
        if publication.class_names:
            metadata = msgspec.structs.replace(metadata, class_names=list(publication.class_names))
        if mapping is not None:
            own = port.mapping if file is None else load_mapping(Path(mapping))  # without what the artifact states
            (stage / MAPPING).write_bytes(standalone(own))
            metadata = msgspec.structs.replace(metadata, mapping=sha256(stage / MAPPING))
        path = stage / f"{release_name(port, publication)}.pth"
        save_artifact(path, Artifact(arrays, metadata))
        path = contents.add_hash(path)
        evidence, against = Evidence(), Against(reference)
        check = open_check(port.checkpoint, path, options, against)
        run_check(check, against, evidence, progress)
        # Published files must not name folders of this machine
        last_name = str(checkpoint).rstrip("/").rpartition("/")[2]
        verdict = replace(check.verdict, checkpoint=last_name, artifact=path.name)
        if failure := verdict.failure():
            raise NoParityError(f"{checkpoint}: {failure}: nothing released")
        endpoints = str(len(verdict.worst_rows()))
        figures = {"reference": verdict.reference, "endpoints": endpoints, "verdict": verdict.sentence()}
        save_artifact(stage / WEIGHTS, Artifact(arrays, msgspec.structs.replace(metadata, parity=figures)))
        (stage / REFERENCE).write_bytes(_record_reference(check))
        exported = write_exports(publication.exports, path, mapping, stage / REFERENCE)
        evaluation = _evaluate_release(path, options, publication.evaluate_on, stage)
        (stage / CONFIG).write_bytes(config(port, metadata))
        card = Card(
            name=release_name(port, publication),
            port=port,
            metadata=metadata,
            parameters=sum(v.size for entry, v in arrays.items() if not entry.endswith(STATISTICS)),
            weights=path,
            verdict=verdict,
            evaluation=evaluation,
            exports={kind: file.name for kind, (file, _) in exported.items()},
            license=publication.license or ("apache-2.0" if publication.sha256 else None),
            dataset=publication.dataset or ("imagenet-1k" if publication.sha256 else None),
            own_mapping=mapping is not None,
            sha256=publication.sha256,
            evaluated_on=publication.evaluate_on.name if publication.evaluate_on else "",
        )
        (stage / CARD).write_bytes(model_card(card))
        errors = {kind: error for kind, (_, error) in exported.items()}
        found = verdict.as_json() | {"exports": errors}
        (stage / PARITY).write_text(json_text(found, indent=1) + "\n")
        (stage / REPORT).write_bytes(parity_html(verdict, evidence))
        contents.write_checksums(stage)
    return Released(folder, port.mapping.variant, verdict, errors)


def release_name(port: Port, publication: Publication = DEFAULT_PUBLICATION) -> str:
    """The name asked for, else timm's for Google's checkpoints (see Publication), else one that makes no claim."""
    if publication.name is not None:
        return publication.name
    if publication.sha256:
        return architecture(port.mapping, port.plan)
    return plain_name(port.mapping, port.plan, port.plan.dequantized)


def _check(port: Port, publication: Publication) -> None:
    """Raise PorterError for an impossible publication, before any work."""
    if publication.name is not None and not PLAIN_NAME.fullmatch(publication.name):
        raise PorterError(f"name {publication.name[:60]!r}: is not a plain name (letters, digits, _ . -)")
    if publication.sha256:
        given = Path(port.checkpoint.given)
        if not given.is_file() or port.checkpoint.format != "bundle":
            raise PorterError(f"{given}: is no tarball; sha256 is the digest of one that Google released")
        if (found := sha256(given)) != publication.sha256.lower():
            raise PorterError(f"{given}: its SHA-256 is {found}, not {publication.sha256[:100]}")
        if not has_released_form(port):
            raise PorterError(f"{given}: holds no checkpoint as Google released them; leave sha256 out")
    integers = isinstance(port.checkpoint, StoredPort) and port.network.bn_folded
    if port.plan.ranges and integers:
        raise PorterError(
            f"{port.checkpoint.given}: computes 8 bits in integers, which only its source's interpreter can judge; "
            "release the source, or leave out the 8 bits (fake_quant=False)"
        )
    class_labels(port.plan.num_classes, publication.class_names)  # refuses another number of names
    if port.plan.ranges and set(publication.exports) - {"tflite"}:
        raise PorterError(
            f"{port.checkpoint.given}: computes 8 bits, and exports but tflite are of float networks; ask for the "
            "dequantised one (fake_quant=False)"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread, so that sums have a fixed order: same input, same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _record_reference(check: Check) -> bytes:
    """The reference's output for one image of 8-bit noise, for checks without the reference."""
    if check.reference.samples:
        images = check.reference.samples[0].images
    else:
        size = check.reference.size or check.mapping.input.sides
        levels = np.round((noise(size, seed=0, count=1).images + 1) * 127.5)
        images = (levels / 127.5 - 1).astype(np.float32)
    names = endpoint_names(check.network, classes=1)
    return record(check.reference, images, names, check.reference.keep or KEEP)


def _evaluate_release(path: Path, options: PortOptions, data: Path | None, stage: Path) -> Evaluation | None:
    if data is None:
        return None
    evaluation = evaluate_classifier(str(path), data, PortOptions(mapping=options.mapping))
    assert evaluation is not None
    evaluation.classifiers = [path.name]
    content = evaluation.as_json()
    del content["run"]  # its duration is not part of the result
    (stage / EVALUATION).write_text(json_text(content, indent=1) + "\n")
    return evaluation
