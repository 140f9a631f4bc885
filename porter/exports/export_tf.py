"""``export_tf``: an artifact as a TensorFlow checkpoint that slim's graph restores."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from porter.artifacts.artifact import find_artifact, load_artifact
from porter.artifacts.relayout import relayout
from porter.artifacts.variant import class_count, mapping_of, network_as_stored
from porter.atomic import check_folder, make_folder
from porter.errors import ArtifactError
from porter.mapping.axes import to_source
from porter.mapping.options import PathLike, PortOptions
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.network.nodes import state_dict_shapes
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

    A background class that was dropped does not come back. Converting the checkpoint again gives the same state dict,
    bit for bit.

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
        PorterError: On an artifact that is not of that variant, or has its batch norms folded.

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
    if metadata and metadata.bn_folded:
        raise ArtifactError(f"{source}: its batch norms are folded away, and slim's graph has them; convert it without")
    network = network_as_stored(build_network(chosen), loaded.arrays, metadata, loaded.gate)
    classes = class_count(loaded.arrays)
    expected, shapes = expected_variables(chosen, network, classes), state_dict_shapes(network, classes)
    problems = [
        f"{want.target}: {'missing' if found is None else f'shape {list(found.shape)}'}, expected {list(shape)}"
        for want in expected
        for found, shape in [(loaded.arrays.get(want.target), shapes[want.target])]
        if found is None or tuple(found.shape) != shape
    ]
    if problems:
        raise ArtifactError(f"{source}: is no {chosen.variant} state dict ({len(problems)} problems):", problems[:20])
    plain = relayout(loaded, "slim", build_network(chosen))
    step = (metadata.step if metadata else None) or 0
    variables: dict[str, np.ndarray] = {"global_step": np.array(step, np.int64)}
    for want in expected:
        values = to_source(want.axes, plain.arrays[want.target].astype(np.float32, copy=False))
        variables[want.source] = values
        if averages:
            variables[want.source + AVERAGE_SUFFIX] = values
    make_folder(out)
    write_bundle(out / f"model-{step}", variables, force=force)
    return Exported(out / f"model-{step}", len(variables), classes)
