"""``release``: convert, verify, and on parity write the folder to publish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from porter.artifacts.files import Artifact, save_artifact
from porter.conversion import PathLike, Port, carry_out_port, plan_port
from porter.errors import NoParityError
from porter.evaluation.result import Evaluation
from porter.evaluation.run import evaluate
from porter.loaders.weights import Weights
from porter.mapping.endpoints import endpoint_names
from porter.parity.evidence import Evidence
from porter.parity.references.recorded import record
from porter.parity.samples import noise
from porter.parity.verdict import Verdict
from porter.parity.verify import Check, open_check, run_check
from porter.release import folder as layout
from porter.release.card import config, model_card, model_name
from porter.release.exports import Export, write_exports
from porter.report.html import parity_html

KEEP = 1024  # values recorded of each endpoint: more than there are classes, so logits stay whole


class Released(NamedTuple):
    """A release: its folder, the variant, and how far the port is from TensorFlow."""

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
    reference: str = "auto",
    evaluate_on: Path | None = None,
    exports: tuple[Export, ...] = (),
    force: bool = False,
) -> Released:
    """Port ``checkpoint`` and write ``folder``: artifacts, card, configuration, checksums, parity.

    ``evaluate_on`` is a folder of labelled images for the card's accuracy; ``exports`` are further forms. Same input,
    same bytes. Raises NoParityError, or PorterError on bad input, NaN among it; then no folder is left behind.
    """
    with layout.staged(folder, force) as stage, _one_thread():
        port = plan_port(checkpoint, variant, mapping=mapping, weights=weights, keep_background=keep_background)
        tensors, metadata = carry_out_port(port)
        path = stage / f"{model_name(port.mapping)}.pth"
        save_artifact(path, tensors, metadata)
        path = layout.add_hash(path)
        check = open_check(
            checkpoint,
            path,
            port.mapping.variant,
            mapping=mapping,
            weights=weights,
            keep_background=keep_background,
            reference=reference,
        )
        evidence = Evidence()
        run_check(check, evidence=evidence)
        # What is published names files, not folders of this machine
        verdict = replace(check.verdict, checkpoint=Path(checkpoint).name, artifact=path.name)
        if failure := verdict.failure():
            raise NoParityError(f"{checkpoint}: {failure}: nothing released")
        with_figures = msgspec.structs.replace(metadata, parity=_figures(verdict))
        save_artifact(stage / layout.WEIGHTS, tensors, with_figures)
        (stage / layout.REFERENCE).write_bytes(_recorded(check))
        exported = write_exports(exports, path, port.mapping, stage / layout.REFERENCE)
        evaluation = _evaluated(path, port, evaluate_on, stage)
        (stage / layout.CONFIG).write_bytes(config(port))
        (stage / layout.CARD).write_bytes(
            model_card(
                port,
                Artifact(tensors, metadata),
                path,
                verdict,
                evaluation,
                {kind: file for kind, (file, _) in exported.items()},
            )
        )
        errors = {kind: error for kind, (_, error) in exported.items()}
        found = verdict.as_json() | {"exports": errors}
        (stage / layout.PARITY).write_text(json.dumps(found, indent=1) + "\n")
        (stage / layout.REPORT).write_bytes(parity_html(verdict, evidence))
        layout.write_checksums(stage)
    return Released(folder, port.mapping.variant, verdict, errors)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order however many cores there are: same input, same bytes."""
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


def _recorded(check: Check) -> bytes:
    """What the reference makes of one image of 8-bit noise, for checks without it."""
    if check.reference.samples:
        images = check.reference.samples[0].images
    else:
        size = check.reference.size or (check.mapping.input.size,) * 2
        levels = np.round((noise(size, seed=0, count=1).images + 1) * 127.5)
        images = (levels / 127.5 - 1).astype(np.float32)
    names = endpoint_names(check.network, classes=1)
    return record(check.reference, images, names, check.reference.keep or KEEP)


def _evaluated(path: Path, port: Port, data: Path | None, stage: Path) -> Evaluation | None:
    if data is None:
        return None
    evaluation = evaluate(str(path), data, port.mapping.variant)
    assert evaluation is not None
    evaluation.classifiers = [path.name]
    content = evaluation.as_json()
    del content["run"]  # how long it took is no part of the result
    (stage / layout.EVALUATION).write_text(json.dumps(content, indent=1) + "\n")
    return evaluation
