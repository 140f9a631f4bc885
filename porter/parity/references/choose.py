"""Which reference a check runs against."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from porter.errors import ParityError
from porter.loaders import Checkpoint
from porter.mapping.network import Network
from porter.parity.references.reference import Reference

KINDS = ("frozen", "meta", "tf.nn")
RECORDED_NAME = "expected.npz"


def choose_reference(
    asked: str, checkpoint: Checkpoint, network: Network, scope: str, dtype: str, any_size: bool
) -> Reference:
    """The reference named by ``asked``: one of KINDS, a path to an ``.npz``, or ``auto``.

    ``auto`` takes the first of: the frozen ``.pb`` beside the checkpoint, its ``.meta``, our ``tf.nn`` graph,
    and without TensorFlow an ``expected.npz`` beside it. What lies beside a checkpoint was made from its
    averages, so it is no reference for raw weights; float64 and ``any_size`` are for ``tf.nn`` alone.
    Raises ParityError when there is none.
    """
    if asked == "auto":
        return _first(checkpoint, network, scope, dtype, any_size)
    if asked not in KINDS and not asked.endswith(".npz"):
        raise ParityError(f"unknown reference {asked!r}: use auto, {', '.join(KINDS)} or a path to an .npz")
    if dtype == "float64" and asked != "tf.nn":
        raise ParityError(f"reference {asked} computes in float32; float64 needs --reference tf.nn")
    if asked.endswith(".npz"):
        return _recorded(Path(asked))
    return _live(asked, checkpoint, network, scope, dtype)


def _first(checkpoint: Checkpoint, network: Network, scope: str, dtype: str, any_size: bool) -> Reference:
    averaged = checkpoint.format == "graphdef" or checkpoint.weights.startswith("moving averages")
    if importlib.util.find_spec("tensorflow") is not None:
        if dtype == "float32" and not any_size:
            if averaged and _frozen_beside(checkpoint):
                return _live("frozen", checkpoint, network, scope, dtype)
            if _meta_beside(checkpoint):
                return _live("meta", checkpoint, network, scope, dtype)
        return _live("tf.nn", checkpoint, network, scope, dtype)
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


def _live(kind: str, checkpoint: Checkpoint, network: Network, scope: str, dtype: str) -> Reference:
    from porter.parity.references import graphs, tf_nn

    if kind == "tf.nn":
        return tf_nn.tf_nn(checkpoint, network, scope, dtype)
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
