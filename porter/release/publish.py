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
    save_artifact,
)
from porter.errors import NoParityError, PorterError
from porter.evaluation.result import Evaluation
from porter.evaluation.run import evaluate
from porter.mapping.files import PLAIN_NAME, standalone
from porter.mapping.options import PathLike, PortOptions
from porter.network.nodes import endpoint_names
from porter.parity.evidence import Evidence
from porter.parity.references.recorded import record
from porter.parity.samples import noise
from porter.parity.verdict import Verdict
from porter.parity.verify import Against, Check, Progress, open_check, run_check
from porter.port import Port, carry_out_port, plan_port
from porter.release import folder as contents
from porter.release.card import STATISTICS, Card, config, model_card
from porter.release.exports import Export, write_exports
from porter.release.naming import architecture, is_googles, plain_name
from porter.report.html import parity_html
from porter.sources.checkpoint import sha256
from porter.sources.weights import Weights
from porter.text import json_text

KEEP = 1024  # values recorded per endpoint: more than the classes, so that logits stay whole


@dataclass(frozen=True)
class Publication:
    """The name of a release and the statements that do not follow from the weights.

    If left out, they are stated only for Google's own checkpoints (porter.release.naming). ``dataset`` and ``license``
    are Hugging Face's identifiers. ``evaluate_on``: a folder of labelled images, for the accuracy in the card.
    ``exports``: further formats.
    """

    name: str | None = None
    license: str | None = None
    dataset: str | None = None
    class_names: tuple[str, ...] = ()
    evaluate_on: Path | None = None
    exports: tuple[Export, ...] = ()


DEFAULT_PUBLICATION = Publication()


class Released(NamedTuple):
    """A release: its folder, variant, verdict, and each export's largest error over the logits' scale."""

    folder: Path
    variant: str
    verdict: Verdict
    exports: dict[str, float]


def release(
    checkpoint: PathLike,
    folder: Path,
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
    """Port ``checkpoint`` and write ``folder``: artifacts, card, configuration, checksums, parity.

    The verified port is the one written; a source trained for 8 bits gives 8 bits, unless ``fake_quant`` is False. Same
    input, same bytes. Raises NoParityError, or PorterError on bad input, including NaN; then no folder is left behind.
    """
    options = PortOptions(variant, mapping, weights, "timm", keep_background, fake_quant=fake_quant)
    with contents.staged(folder, force) as stage, _one_thread():
        port = plan_port(checkpoint, options)
        _check(port, publication)
        arrays, metadata = carry_out_port(port)
        assert metadata is not None
        metadata = msgspec.structs.replace(metadata, class_names=list(publication.class_names))
        if mapping is not None:
            (stage / MAPPING).write_bytes(standalone(port.mapping))
            metadata = msgspec.structs.replace(metadata, mapping=sha256(stage / MAPPING))
        path = stage / f"{release_name(port, publication)}.pth"
        save_artifact(path, Artifact(arrays, metadata))
        path = contents.add_hash(path)
        check = open_check(checkpoint, path, options, Against(reference))
        evidence = Evidence()
        run_check(check, evidence=evidence, progress=progress)
        # Published files must not name folders of this machine
        last_name = str(checkpoint).rstrip("/").rpartition("/")[2]
        verdict = replace(check.verdict, checkpoint=last_name, artifact=path.name)
        if failure := verdict.failure():
            raise NoParityError(f"{checkpoint}: {failure}: nothing released")
        with_figures = msgspec.structs.replace(metadata, parity=_figures(verdict))
        save_artifact(stage / WEIGHTS, Artifact(arrays, with_figures))
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
            license=publication.license or ("apache-2.0" if is_googles(port) else None),
            dataset=publication.dataset or ("imagenet-1k" if is_googles(port) else None),
            own_mapping=mapping is not None,
        )
        (stage / CARD).write_bytes(model_card(card))
        errors = {kind: error for kind, (_, error) in exported.items()}
        found = verdict.as_json() | {"exports": errors}
        (stage / PARITY).write_text(json_text(found, indent=1) + "\n")
        (stage / REPORT).write_bytes(parity_html(verdict, evidence))
        contents.write_checksums(stage)
    return Released(folder, port.mapping.variant, verdict, errors)


def release_name(port: Port, publication: Publication = DEFAULT_PUBLICATION) -> str:
    """The name asked for, else timm's for Google's checkpoints, else one that makes no claim."""
    if publication.name is not None:
        return publication.name
    if is_googles(port):
        return architecture(port.mapping, port.plan)
    return plain_name(port.mapping, port.plan, port.plan.dequantized)


def _check(port: Port, publication: Publication) -> None:
    """Raise PorterError for an impossible publication, before any work."""
    if publication.name is not None and not PLAIN_NAME.fullmatch(publication.name):
        raise PorterError(f"name {publication.name[:60]!r}: is not a plain name (letters, digits, _ . -)")
    if publication.class_names and len(publication.class_names) != port.plan.num_classes:
        raise PorterError(
            f"{len(publication.class_names)} class names for {port.plan.num_classes} classes; one name for each"
        )
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


def _figures(verdict: Verdict) -> dict[str, str]:
    return {
        "reference": verdict.reference,
        "endpoints": str(len(verdict.worst_rows())),
        "verdict": verdict.sentence(),
    }


def _record_reference(check: Check) -> bytes:
    """The reference's output for one image of 8-bit noise, for checks without the reference."""
    if check.reference.samples:
        images = check.reference.samples[0].images
    else:
        size = check.reference.size or (check.mapping.input.size,) * 2
        levels = np.round((noise(size, seed=0, count=1).images + 1) * 127.5)
        images = (levels / 127.5 - 1).astype(np.float32)
    names = endpoint_names(check.network, classes=1)
    return record(check.reference, images, names, check.reference.keep or KEEP)


def _evaluate_release(path: Path, options: PortOptions, data: Path | None, stage: Path) -> Evaluation | None:
    if data is None:
        return None
    evaluation = evaluate(str(path), data, PortOptions(mapping=options.mapping))
    assert evaluation is not None
    evaluation.classifiers = [path.name]
    content = evaluation.as_json()
    del content["run"]  # its duration is not part of the result
    (stage / EVALUATION).write_text(json_text(content, indent=1) + "\n")
    return evaluation
