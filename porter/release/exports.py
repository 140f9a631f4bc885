"""Exports of a port, each checked against the reference's logits."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from porter.errors import ArtifactError, NoParityError
from porter.jobs.create import open_model
from porter.mapping.options import PathLike, PortOptions
from porter.models.deployment import deploy
from porter.models.mobilenet_v3 import MobileNetV3
from porter.parity.candidates.candidate import Output
from porter.parity.compare import compare
from porter.parity.references.recorded import recorded
from porter.parity.references.reference import Values

Export = Literal["onnx", "pt2", "torchscript", "aot"]
# Loops run on as many threads as there are when the package runs, not as there were when it was made. They are cut
# for eight at least: for fewer, images alone would be shared out, and one image never.
AOT_OPTIONS = {"cpp.dynamic_threads": True, "cpp.threads": max(8, os.cpu_count() or 1)}
Run = Callable[[np.ndarray], np.ndarray]  # (N, 3, H, W) -> (N, classes)


def write_exports(
    kinds: Sequence[Export], artifact: Path, mapping: PathLike | None, reference: Path
) -> dict[str, tuple[Path, float]]:
    """Write each of ``kinds`` beside ``artifact``: kind -> file, and how far its logits are, over their scale.

    All take a batch of any size at the training resolution. Raises NoParityError where one is less exact than it may
    be, ArtifactError where a package is missing.
    """
    if not kinds:
        return {}
    opened = open_model(artifact, PortOptions(mapping=mapping))
    model, background = opened.model, opened.mapping.classes.background
    against = recorded(reference)
    images = against.samples[0].images
    found_there = dict(against.run(images, ["Logits"]))
    if "Logits" not in found_there:
        raise ArtifactError(f"{artifact.name}: a feature extractor; exports are of classifiers")
    logits, noise = found_there["Logits"]
    if background is not None and logits.shape[1] > getattr(model, "num_classes", 0):
        logits = np.delete(logits, background, axis=1)
    expected = Values(logits[:1], noise)
    # Twice the image: the batch is another than the one exported with
    batch = np.ascontiguousarray(np.concatenate([images[:1]] * 2).transpose(0, 3, 1, 2))
    found: dict[str, tuple[Path, float]] = {}
    for kind in kinds:
        path, run = _WRITERS[kind](model, artifact.with_suffix(""), batch[:1])
        rows = [compare("Logits", "", expected, Output(None, one[None])) for one in run(batch)]
        furthest = max(rows, key=lambda row: row.excess)
        assert furthest.port is not None
        error = furthest.port.largest
        if not furthest.passed:
            raise NoParityError(f"{path.name}: no parity: logits are {error:.1e} of their scale off: nothing released")
        found[kind] = path, error
    return found


def onnx_model(model: torch.nn.Module, stem: Path, example: np.ndarray) -> tuple[Path, Run]:
    """``<stem>.onnx`` of ``model``, and ONNX Runtime running it. ``example`` is one image, (1, 3, H, W)."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ArtifactError(f"the ONNX export needs pip install 'mnv3-port[onnx]' ({error})") from error
    path = stem.with_name(stem.name + ".onnx")
    with _quiet():
        torch.onnx.export(
            model,
            (torch.from_numpy(example),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return path, lambda batch: np.asarray(session.run(["logits"], {"image": batch})[0])


def _export(model: torch.nn.Module, example: np.ndarray) -> torch.export.ExportedProgram:
    inputs = torch.from_numpy(np.concatenate([example, example]))  # a batch of one would be taken for a constant
    return torch.export.export(model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _pt2(model: torch.nn.Module, stem: Path, example: np.ndarray) -> tuple[Path, Run]:
    path = stem.with_name(stem.name + ".pt2")
    with _quiet():
        torch.export.save(_export(model, example), path)
        loaded = torch.export.load(path).module()
    return path, _torch_run(loaded)


def _torchscript(model: torch.nn.Module, stem: Path, example: np.ndarray) -> tuple[Path, Run]:
    path = stem.with_name(stem.name + ".ts")
    with _quiet(), torch.no_grad():
        torch.jit.trace(model, torch.from_numpy(example)).save(str(path))  # type: ignore[no-untyped-call]
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return path, _torch_run(loaded)


def aot_package(model: torch.nn.Module, stem: Path, example: np.ndarray) -> tuple[Path, Run]:
    """``<stem>.aot.pt2``: ``model``, deployed, compiled by AOTInductor; and torch running it. ``example`` as above.

    The package takes a batch of any size; it is run in parts, as ``Deployed`` does, because that is faster.
    """
    path = stem.with_name(stem.name + ".aot.pt2")
    with _quiet(), torch.no_grad():
        assert isinstance(model, MobileNetV3)
        deployed = deploy(model, (example.shape[2], example.shape[3]))
        exported = _export(deployed, example)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=AOT_OPTIONS)
        loaded = torch._inductor.aoti_load_package(str(path))

    def in_parts(images: torch.Tensor) -> torch.Tensor:
        starts = range(0, len(images), deployed.part)
        return torch.cat([loaded(images[start : start + deployed.part]) for start in starts])

    return path, _torch_run(in_parts)


def _torch_run(loaded: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    def run(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = loaded(torch.from_numpy(batch)).numpy()
        return found

    return run


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Silence the progress and deprecation messages of torch's exporters. Errors still come through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_WRITERS: dict[Export, Callable[[torch.nn.Module, Path, np.ndarray], tuple[Path, Run]]] = {
    "onnx": onnx_model,
    "pt2": _pt2,
    "torchscript": _torchscript,
    "aot": aot_package,
}
