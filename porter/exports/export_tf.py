"""``export_tf``: an artifact as a TensorFlow checkpoint that slim's graph restores."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from porter.artifacts.artifact import find_artifact, load_artifact
from porter.artifacts.relayout import relayout
from porter.artifacts.source import as_variables, with_background
from porter.artifacts.variant import class_count, mapping_of, network_as_stored
from porter.atomic import check_folder, make_folder
from porter.errors import ArtifactError, PorterNote
from porter.mapping.options import PathLike, PortOptions
from porter.mapping.stated import Stated
from porter.network.network import build_network
from porter.sources.bundle_writer import write_bundle
from porter.sources.weights import AVERAGE_SUFFIX


class Exported(NamedTuple):
    """The prefix written, the variables in it, and the classes of its classifier."""

    prefix: Path
    variables: int
    classes: int


def export_tf(
    artifact: PathLike,
    folder: PathLike,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    averages: bool = False,
    force: bool = False,
) -> Exported:
    """Write an artifact as a TensorFlow V2 checkpoint under slim's names, the gate fold undone.

    Converting it again gives the same state dict, bit for bit. A background class that was dropped comes back, from the
    artifact or as zeros, so that the released graph of 1,001 classes restores the checkpoint. PorterNotes warn of
    zeros, of another number of classes, which that graph does not restore, and of what variables do not hold.

    Args:
        artifact: A ``.pth`` or ``.safetensors``, a release's folder, or the URL of either.
        folder: Where the checkpoint goes, as ``model-<step>``.
        variant: Needed for a state dict of another tool. Its gate is 1/6 unless an entry says another.
        mapping: A mapping file of your own.
        averages: Write every variable under its ``ExponentialMovingAverage`` name as well.
        force: Overwrite a checkpoint in ``folder``.

    Returns:
        The prefix written, the number of variables, and the classes.

    Raises:
        PorterError: On an artifact that is not of that variant, has its batch norms folded, or a classifier of several
            layers without a mapping file of your own.

    Example:
        >>> path, _ = porter.convert(source, folder / "back.pth")
        >>> porter.export_tf(path, folder / "tensorflow").variables
        211
    """
    source, out = str(artifact), Path(folder)
    check_folder(out)
    file = find_artifact(source)
    loaded = load_artifact(file or source)
    metadata = loaded.metadata
    chosen = mapping_of(loaded.metadata, PortOptions(variant, mapping), file.mapping if file else None, source)
    network = network_as_stored(build_network(chosen), loaded.arrays, metadata, loaded.gate)
    if network.bn_folded and not chosen.bn_folded:
        raise ArtifactError(f"{source}: its batch norms are folded away, and slim's graph has them; convert it without")
    if network.tail and not (mapping or (file and file.mapping)):
        raise ArtifactError(
            f"{source}: its classifier has several layers, and that of slim's graph has one; a mapping file of your "
            "own can name them"
        )
    plain = relayout(loaded, "slim", build_network(chosen))
    known = with_background(plain, chosen)
    arrays = known if known is not plain.arrays else with_background(plain, chosen, zeros=True)
    classes, wanted = class_count(arrays), chosen.classes.background_of
    values = as_variables(arrays, chosen, network, source)
    if arrays is not known:
        warnings.warn(f"{source}: without its background class, which is written as zeros", PorterNote, stacklevel=2)
    if wanted is not None and classes != wanted:
        told = f"{source}: has {classes} classes; the released graph has {wanted} and does not restore it"
        warnings.warn(told, PorterNote, stacklevel=2)
    if lost := _not_in_variables(metadata.stated if metadata else Stated()):
        told = f"{source}: a checkpoint does not hold its {', '.join(lost)}, which the variant has otherwise; keep both"
        warnings.warn(told, PorterNote, stacklevel=2)
    step = (metadata.step if metadata else None) or 0
    variables: dict[str, np.ndarray] = {"global_step": np.array(step, np.int64)}
    for name, entry in values.items():
        variables[name] = entry.astype(np.float32, copy=False)
        if averages:
            variables[name + AVERAGE_SUFFIX] = variables[name]
    make_folder(out)
    write_bundle(out / f"model-{step}", variables, force=force)
    return Exported(out / f"model-{step}", len(variables), classes)


def _not_in_variables(stated: Stated) -> list[str]:
    """The facts of ``stated`` that a checkpoint has no place for, in words."""
    facts = {
        "scaling": stated.input,
        "batch norm epsilon": stated.epsilon,
        "output stride": stated.output_stride,
        "pooling": None if stated.pooling == "average" else stated.pooling,
        "predictions": stated.predictions,
    }
    return [fact for fact, value in facts.items() if value is not None]
