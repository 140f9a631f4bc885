"""Which reference a check runs against."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from porter.errors import ParityError
from porter.mapping.stated import FACTS
from porter.network.node import Size
from porter.parity.references.child import in_child
from porter.parity.references.live_tensorflow import OR_RECORDED
from porter.parity.references.recorded import recorded
from porter.parity.references.reference import Endpoints, Reference, for_port
from porter.parity.references.wire import Request
from porter.port import Port
from porter.process import temporary_folder
from porter.sources import Checkpoint
from porter.sources.bundle_writer import write_bundle
from porter.sources.keras import read_config
from porter.sources.locate import SAVED_MODEL
from porter.sources.object_graph import OBJECT_GRAPH
from porter.text import printable

KINDS = ("frozen", "meta", "saved_model", "keras", "tflite", "tf.nn")
RECORDED_NAME = "expected.npz"
COPY = "model"

# Memory limits of the process that runs a reference, beyond TensorFlow itself. Measured on large_100: 0.4 GiB for
# threads and kernels of a session; 5 x the file for weights in two precisions and their protocol buffers; 4 KiB per
# pixel for all endpoints of one image in two precisions. Each limit is two to four times that.
MEMORY, MEMORY_OF_FILE, MEMORY_OF_PIXEL = 1 << 30, 16, 16 << 10
TRAINING = 4  # times as much for each pixel: batch norms, activations and convolutions each keep what they got


def open_reference(asked: str, port: Port, sizes: tuple[Size, ...] | None = None) -> Reference:
    """The reference ``asked``: one of KINDS, a path to an ``.npz``, or ``auto``.

    ``auto`` prefers what runs the source itself (a .tflite's interpreter, Keras, a SavedModel's graph). Otherwise it
    takes the first of: the frozen ``.pb`` beside the checkpoint, its ``.meta``, our ``tf.nn`` graph and, without
    TensorFlow, an ``expected.npz`` beside it. Files beside a checkpoint were made from its averages, so they are no
    reference for raw weights. ``sizes`` are the sizes of the images to come. Fake quantisation needs ``tf.nn``, or for
    a .tflite its interpreter, which has nothing else. Raises ParityError if there is no reference.
    """
    if port.plan.dequantized and asked in ("auto", "tflite"):
        if asked == "tflite":
            raise ParityError(f"{port.checkpoint.given}: computes 8 bits; the dequantised port is compared with tf.nn")
        asked = "tf.nn"
    if port.plan.ranges and port.checkpoint.format != "tflite":
        if asked not in ("auto", "tf.nn"):
            raise ParityError(f"reference {asked} has no fake quantisation; use the reference tf.nn")
        asked = "tf.nn"
    if asked.endswith(".npz"):
        return recorded(Path(asked))
    if asked not in ("auto", *KINDS):
        raise ParityError(f"unknown reference {asked!r}: use auto, {', '.join(KINDS)} or a path to an .npz")
    if (asked == "keras" and not of_keras(port.checkpoint)) or (asked == "tflite" != port.checkpoint.format):
        raise ParityError(f"{port.checkpoint.given}: no {asked} file; use another reference")
    if asked == "auto":
        asked = _first(port, sizes)
    if asked.endswith(".npz"):
        return recorded(Path(asked))
    return _live(asked, port, sizes or (port.mapping.input.sides,))


def training_reference(asked: str, port: Port, images: tuple[int, Size]) -> Reference:
    """The reference ``asked`` for a step of training: ``tf.nn``, ``keras``, or ``auto`` for the latter if it can run.

    ``images`` are the number and size of those to come. Raises ParityError if there is no such reference.
    """
    count, (height, width) = images
    if asked == "auto":
        asked = "keras" if of_keras(port.checkpoint) and _first(port, None) == "keras" else "tf.nn"
    if asked not in ("keras", "tf.nn") or (asked == "keras" and not of_keras(port.checkpoint)):
        raise ParityError(
            f"{port.checkpoint.given}: a step of training is compared with tf.nn, or with a Keras file's own model"
        )
    # The gradients need all endpoints of all images at once
    return _live(asked, port, ((height * count * TRAINING, width),), train=True)


def _first(port: Port, sizes: tuple[Size, ...] | None) -> str:
    checkpoint = port.checkpoint
    if checkpoint.format == "tflite":
        return "tflite"
    own_size = all(size == port.mapping.input.sides for size in sizes or ())
    averaged = checkpoint.format == "graphdef" or checkpoint.weights.startswith("moving averages")
    if importlib.util.find_spec("tensorflow") is not None:
        whole = (port.classes or not port.network.embedding) and not port.network.backbone
        known = port.mapping.keras and not port.stated.multiplier and whole  # of keras.applications
        runs = known if checkpoint.graph is None else port.assumed != FACTS  # else the network is not in the graph
        if of_keras(checkpoint) and runs and own_size:
            return "keras"
        if checkpoint.saved_model and checkpoint.graph and port.assumed != FACTS and own_size:
            return "saved_model"
        if averaged and _frozen_beside(port):
            return "frozen"
        training = checkpoint.graph is not None and checkpoint.graph.in_training
        return "meta" if _meta_beside(checkpoint) and not training else "tf.nn"
    file = next((f / RECORDED_NAME for f in _folders(checkpoint) if (f / RECORDED_NAME).is_file()), None)
    if file is None or not averaged:
        raise ParityError(
            f"{checkpoint.given}: nothing to compare with: install TensorFlow (pip install 'mnv3-port[tensorflow]') or "
            "give a recorded reference (.npz)"
        )
    return str(file)


def _live(kind: str, port: Port, sizes: tuple[Size, ...], train: bool = False) -> Reference:
    checkpoint = port.checkpoint
    if kind != "tflite" and importlib.util.find_spec("tensorflow") is None:
        raise ParityError(f"this comparison needs TensorFlow: pip install 'mnv3-port[tensorflow]'{OR_RECORDED}")
    graph = _frozen_beside(port) if kind == "frozen" else None
    if kind == "frozen" and graph is None:
        raise ParityError(f"{checkpoint.given}: expected one frozen .pb beside it; use the reference tf.nn")
    if kind == "saved_model" and checkpoint.saved_model is None:
        raise ParityError(f"{checkpoint.given}: no SavedModel's checkpoint; use the reference tf.nn")
    if kind == "meta" and not _meta_beside(checkpoint):
        raise ParityError(f"{checkpoint.path}.meta: no such file; use the reference tf.nn")
    memory = memory_for([graph] if graph else checkpoint.files, sizes)
    copy = _copy(port) if checkpoint.remote else None
    request = Request(
        kind=kind,
        path=os.fsencode((Path(copy.name) / COPY if copy else checkpoint.path).absolute()),
        given=printable(checkpoint.given),
        weights="auto" if copy else checkpoint.choice,
        mapping=port.mapping,
        memory=memory,
        graph=os.fsencode(graph.absolute()) if graph else None,
        fake_quant=False if port.plan.dequantized else None,
        train=train,
        drop_class=port.mapping.classes.background if port.plan.background_dropped else None,
    )
    reference = in_child(request, copy)
    return reference if reference.takes or port.white is None else _from_pixels(reference, port)


def _from_pixels(reference: Reference, port: Port) -> Reference:
    """``reference``, which begins at the first convolution, on 8-bit pixels by the port's preprocessing."""
    spec, white = port.mapping.input, port.white

    def prepare(images: np.ndarray) -> np.ndarray:
        return for_port(images, spec, white, np.float32)

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        return reference.run(prepare(images), names)

    return replace(reference, run=run, prepare=prepare, takes="what the port gets")


def memory_for(files: Iterable[Path], sizes: Iterable[Size]) -> int:
    """Bytes that a process may take to run the network in ``files`` on images of ``sizes``."""
    largest = max(height * width for height, width in sizes)
    return MEMORY + MEMORY_OF_FILE * sum(path.stat().st_size for path in files) + MEMORY_OF_PIXEL * largest


def _copy(port: Port) -> tempfile.TemporaryDirectory[str]:
    """A local copy of the variables that the port needs from a remote checkpoint, and of its graph."""
    folder = temporary_folder()
    ranges = [f"{name}/{end}" for name in port.plan.ranges.values() for end in ("min", "max")]
    names = [*(step.source for step in port.plan.steps), *ranges]
    port.checkpoint.prefetch(names)
    write_bundle(Path(folder.name) / COPY, {name: port.checkpoint[name].read() for name in names})
    if _meta_beside(port.checkpoint):
        shutil.copyfile(f"{port.checkpoint.path}.meta", Path(folder.name) / f"{COPY}.meta")
    return folder


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """Where a checkpoint's companions may be: its own folder, and the released folder above ``ema/``."""
    folder = checkpoint.path.parent
    return [folder, folder.parent] if folder.name in ("ema", "pristine") else [folder]


def of_keras(checkpoint: Checkpoint) -> bool:
    """Whether it is a Keras file, or a checkpoint with its model's configuration beside it."""
    by_objects = OBJECT_GRAPH in checkpoint.set_aside.values() and not checkpoint.remote
    return checkpoint.format == "keras" or (by_objects and read_config(checkpoint.path) is not None)


def _frozen_beside(port: Port) -> Path | None:
    """The only ``.pb`` beside the checkpoint that is large enough to hold its weights: a graph may have none."""
    checkpoint = port.checkpoint
    if checkpoint.format == "graphdef":
        return checkpoint.path
    weights = sum(checkpoint[step.source].nbytes for step in port.plan.steps)
    graphs = [path for folder in _folders(checkpoint) for path in folder.glob("*.pb") if path.name != SAVED_MODEL]
    frozen = [path for path in graphs if path.stat().st_size >= weights]
    return frozen[0] if len(frozen) == 1 else None


def _meta_beside(checkpoint: Checkpoint) -> bool:
    return checkpoint.format == "bundle" and checkpoint.path.with_name(checkpoint.path.name + ".meta").is_file()
