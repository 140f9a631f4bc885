"""Which reference a check runs against."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from porter.conversion import Port
from porter.errors import ParityError
from porter.loaders import Checkpoint
from porter.parity.references.reference import Reference

KINDS = ("frozen", "meta", "keras", "tflite", "tf.nn")
RECORDED_NAME = "expected.npz"


def choose_reference(asked: str, port: Port, dtype: str, any_size: bool, fake_quant: bool = False) -> Reference:
    """The reference named by ``asked``: one of KINDS, a path to an ``.npz``, or ``auto``.

    ``auto`` takes what runs the source itself (a .tflite's interpreter, Keras), else the first of: the frozen
    ``.pb`` beside the checkpoint, its ``.meta``, our ``tf.nn`` graph, and without TensorFlow an ``expected.npz``
    beside it. What lies beside a checkpoint was made from its averages, so it is no reference for raw weights;
    float64, ``any_size`` and ``fake_quant`` are for ``tf.nn`` alone (a .tflite of 8 bits
    quantises in any case). Raises ParityError when there is none.
    """
    if fake_quant and port.checkpoint.format != "tflite":
        if asked not in ("auto", "tf.nn"):
            raise ParityError(f"reference {asked} knows no fake quantisation; use --reference tf.nn")
        from porter.parity.references.tf_nn import tf_nn

        return tf_nn(port, dtype, fake_quant)
    if asked == "auto":
        return _first(port, dtype, any_size)
    if asked not in KINDS and not asked.endswith(".npz"):
        raise ParityError(f"unknown reference {asked!r}: use auto, {', '.join(KINDS)} or a path to an .npz")
    if dtype == "float64" and asked != "tf.nn":
        raise ParityError(f"reference {asked} computes in float32; float64 needs --reference tf.nn")
    if asked.endswith(".npz"):
        return _recorded(Path(asked))
    if asked in ("keras", "tflite") and port.checkpoint.format != asked:
        raise ParityError(f"{port.checkpoint.given}: no {asked} file; leave out --reference")
    return _live(asked, port, dtype)


def _first(port: Port, dtype: str, any_size: bool) -> Reference:
    checkpoint = port.checkpoint
    if checkpoint.format == "tflite":
        if dtype == "float64":
            raise ParityError(f"{checkpoint.given}: its interpreter computes in float32; leave out --dtype")
        return _live("tflite", port, dtype)
    averaged = checkpoint.format == "graphdef" or checkpoint.weights.startswith("moving averages")
    if importlib.util.find_spec("tensorflow") is not None:
        if dtype == "float32" and not any_size:
            if checkpoint.format == "keras" and (port.classes or not port.network.head):
                return _live("keras", port, dtype)
            if averaged and _frozen_beside(checkpoint):
                return _live("frozen", port, dtype)
            if _meta_beside(checkpoint):
                return _live("meta", port, dtype)
        return _live("tf.nn", port, dtype)
    file = next((f / RECORDED_NAME for f in _folders(checkpoint) if (f / RECORDED_NAME).is_file()), None)
    if file is None or dtype != "float32" or not averaged:
        raise ParityError(
            f"{checkpoint.given}: nothing to compare with: install TensorFlow (pip install 'mnv3-port[tensorflow]') or "
            "give --reference FILE.npz"
        )
    return _recorded(file)


def _recorded(path: Path) -> Reference:
    from porter.parity.references.recorded import recorded

    return recorded(path)


def _live(kind: str, port: Port, dtype: str) -> Reference:
    checkpoint, network, scope = port.checkpoint, port.network, port.mapping.scope
    if kind == "keras":
        from porter.parity.references.keras_model import keras_model

        return keras_model(port)
    if kind == "tflite":
        from porter.parity.references.interpreter import interpreter

        return interpreter(port)
    from porter.parity.references import graphs, tf_nn

    if kind == "tf.nn":
        return tf_nn.tf_nn(port, dtype)
    if kind == "meta":
        if not _meta_beside(checkpoint):
            raise ParityError(f"{checkpoint.path}.meta: no such file; use --reference tf.nn")
        return graphs.meta_graph(checkpoint, network, scope)
    frozen = _frozen_beside(checkpoint)
    if frozen is None:
        raise ParityError(f"{checkpoint.given}: not one frozen .pb beside it; use --reference tf.nn")
    return graphs.frozen_graph(frozen, network, scope)


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """Where companions of a checkpoint lie: its folder, and the released folder above ``ema/``."""
    folder = checkpoint.path.parent
    return [folder, folder.parent] if folder.name in ("ema", "pristine") else [folder]


def _frozen_beside(checkpoint: Checkpoint) -> Path | None:
    if checkpoint.format == "graphdef":
        return checkpoint.path
    graphs = [path for folder in _folders(checkpoint) for path in sorted(folder.glob("*.pb"))]
    return graphs[0] if len(graphs) == 1 else None


def _meta_beside(checkpoint: Checkpoint) -> bool:
    return checkpoint.format == "bundle" and checkpoint.path.with_name(checkpoint.path.name + ".meta").is_file()
