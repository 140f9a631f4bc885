"""Exports of a port, each checked against the reference's logits."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from porter.artifacts.artifact import load_artifact
from porter.artifacts.relayout import relayout
from porter.errors import ArtifactError, NoParityError
from porter.exports.deploy import model_program
from porter.exports.files import export_bytes, onnx_bytes
from porter.exports.plain import Plain
from porter.exports.runtime import onnx_session
from porter.mapping.options import PathLike, PortOptions
from porter.mapping.ranges import levels as levels_of
from porter.models.build import Whole
from porter.models.create import OpenedModel, open_model
from porter.network.node import IMAGE, Size
from porter.network.nodes import nodes
from porter.parity.candidates.candidate import Output
from porter.parity.compare import SAME_FUNCTION, SAME_LEVEL, compare
from porter.parity.references.interpreter import interpreter, run_file
from porter.parity.references.recorded import recorded
from porter.parity.references.reference import Values, thin
from porter.port import plan_port

Export = Literal["onnx", "tflite", "pte", "pt2", "torchscript"]
OTHER_SUFFIXES: dict[Export, str] = {"torchscript": "ts"}  # of kinds that differ from their suffix
Run = Callable[[np.ndarray], list[np.ndarray]]  # (N, 3, H, W) -> the outputs of the file, maps NHWC


class ExportInputs(NamedTuple):
    """What an export is made from, and its file. ``example`` is one image, (1, 3, H, W)."""

    opened: OpenedModel
    artifact: Path
    mapping: PathLike | None
    example: np.ndarray
    path: Path

    @property
    def model(self) -> Whole:
        """The classifier or segmenter."""
        return self.opened.whole

    @property
    def size(self) -> Size:
        """Height and width of images."""
        return self.example.shape[2], self.example.shape[3]


def write_exports(
    kinds: Sequence[Export], artifact: Path, mapping: PathLike | None, reference: Path
) -> dict[str, tuple[Path, float]]:
    """Write each of ``kinds`` beside ``artifact``: kind -> (file, largest error of its logits over their scale).

    All take images of the training resolution: ``pte`` one at a time, the others a batch of any size. A port that
    computes 8 bits has only ``tflite``, which gives the same levels. Raises NoParityError if an export is less exact
    than allowed, ArtifactError if a package is missing.
    """
    if not kinds:
        return {}
    opened = open_model(artifact, PortOptions(mapping=mapping))
    model, background = opened.whole, opened.mapping.classes.background
    if model.network.head is not None and set(kinds) - {"onnx", "tflite"}:
        raise ArtifactError(f"{artifact.name}: a segmenter or detector can only be exported to onnx and tflite")
    against = recorded(reference)
    images = against.samples[0].images
    # Twice the image: another batch size than the export's
    batch = np.ascontiguousarray(np.concatenate([images[:1]] * 2).transpose(0, 3, 1, 2), np.float32)
    if not model.num_classes:
        raise ArtifactError(f"{artifact.name}: a feature extractor; only networks with classes can be exported")
    found: dict[str, tuple[Path, float]] = {}
    for kind in kinds:
        path = artifact.with_suffix(f".{OTHER_SUFFIXES.get(kind, kind)}")
        run = _WRITERS[kind](ExportInputs(opened, artifact, mapping, batch[:1], path))
        outputs = _by_endpoint(model, run(batch), (images.shape[1], images.shape[2]))
        rows = []
        for name, (values, noise) in against.run(images, list(outputs)):
            if name == "Logits" and background is not None and values.shape[1] > model.num_classes:
                values = np.delete(values, background, axis=1)
            kept = outputs[name] if name == "Logits" else thin(outputs[name], against.keep)
            want = Values(values[:1], noise)
            for one in kept:
                output = Output(one[None], None) if opened.fake_quant else Output(None, one[None])
                rows.append(compare(name, "", want, output, SAME_LEVEL if opened.fake_quant else SAME_FUNCTION))
        furthest = max(rows, key=lambda row: row.excess)
        found[kind] = path, furthest.distance
        if not furthest.passed:
            off = f"{furthest.endpoint} is {furthest.distance:.1e} of its scale off"
            raise NoParityError(f"{path.name}: no parity: {off}: nothing released")
    return found


def _by_endpoint(model: Whole, outputs: Sequence[np.ndarray], size: Size) -> dict[str, np.ndarray]:
    """``outputs`` of an exported file, maps NHWC, by endpoint."""
    if model.network.head is None:
        return {"Logits": outputs[0]}
    return model.network.head.by_endpoint(outputs, nodes(model.network, model.num_classes), size)


def write_onnx(exported: ExportInputs) -> Run:
    """ONNX, and ONNX Runtime running it."""
    exported.path.write_bytes(onnx_bytes(model_program(exported.model), exported.size, exported.opened.metadata))
    session = onnx_session(exported.path.read_bytes(), threads=1)

    def run(batch: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = session.run(None, {IMAGE: batch})
        return [values.transpose(0, 2, 3, 1) if values.ndim == 4 else values for values in found]

    return run


def write_pt2(exported: ExportInputs) -> Run:
    """A torch.export program."""
    inputs = torch.from_numpy(np.concatenate([exported.example] * 2))  # torch would make a batch of one a constant
    with _quiet():
        program = torch.export.export(exported.model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, exported.path)
        loaded = torch.export.load(exported.path).module()
    return _torch_run(loaded)


def write_torchscript(exported: ExportInputs) -> Run:
    """TorchScript."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(exported.model, torch.from_numpy(exported.example))  # type: ignore[no-untyped-call]
        traced.save(str(exported.path))
        loaded = torch.jit.load(str(exported.path))  # type: ignore[no-untyped-call]
    return _torch_run(loaded)


def write_pte(exported: ExportInputs) -> Run:
    """ExecuTorch with XNNPACK, one image at a time, as on a phone."""
    with _quiet():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from executorch.runtime import Runtime
        except ImportError as error:
            raise ArtifactError(f"the .pte export needs pip install 'mnv3-port[executorch]' ({error})") from error
        plain = Plain(model_program(exported.model)).eval()
        program = torch.export.export(plain, (torch.from_numpy(exported.example),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        exported.path.write_bytes(lowered.to_executorch().buffer)
        method = Runtime.get().load_program(exported.path).load_method("forward")

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate([method.execute([torch.from_numpy(image[None])])[0].numpy() for image in batch])]

    return run


def write_tflite(exported: ExportInputs) -> Run:
    """TensorFlow Lite; integers for a port that computes 8 bits."""
    opened, network = exported.opened, exported.model.network
    artifact = load_artifact(exported.artifact)
    if opened.fake_quant:
        artifact = relayout(artifact, "slim", network)
    exported.path.write_bytes(export_bytes(".tflite", network, artifact, exported.size))
    if not opened.fake_quant:
        return lambda batch: run_file(exported.path, np.ascontiguousarray(batch.transpose(0, 2, 3, 1)))
    own = PortOptions(opened.mapping.variant, exported.mapping)
    with _quiet():
        reference = interpreter(plan_port(exported.path, own))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        assert artifact.metadata is not None
        scale, zero = levels_of(artifact.metadata.ranges["input"])  # of the image, which the file takes as pixels
        pixels = np.clip(np.round(batch.transpose(0, 2, 3, 1) / scale) + zero, 0, 255)
        images = np.ascontiguousarray(pixels / 127.5 - 1, np.float32)
        return [dict(reference.run(images, ["Logits"]))["Logits"].values]

    return run


def _torch_run(loaded: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    def run(batch: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [loaded(torch.from_numpy(batch)).numpy()]

    return run


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Silence what torch's exporters, LiteRT and ExecuTorch print; exceptions pass. XNNPACK writes to descriptor 2."""
    level, stderr = logging.root.manager.disable, os.dup(2)
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - a device
        ):
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(level)


_WRITERS: dict[Export, Callable[[ExportInputs], Run]] = {
    "onnx": write_onnx,
    "tflite": write_tflite,
    "pte": write_pte,
    "pt2": write_pt2,
    "torchscript": write_torchscript,
}
