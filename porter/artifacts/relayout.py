"""Moving an artifact's weights between definitions of the squeeze-excite gate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from porter.architecture.layers import layers
from porter.architecture.network import Network
from porter.artifacts.arrays import Arrays
from porter.artifacts.variant import class_count
from porter.mapping.apply import fold_batch_norm
from porter.mapping.gate import TIMM_GATE, fold, unfold
from porter.mapping.options import ArtifactLayout

if TYPE_CHECKING:
    import numpy as np


def relayout(artifact: Arrays, layout: ArtifactLayout, gate_folded: Iterable[str]) -> Arrays:
    """The same port for the other gate: ``slim`` undoes the fold bit for bit, ``timm`` folds.

    ``gate_folded`` names the ``project`` weights that take the fold. An artifact without metadata or already in
    ``layout`` comes back as it is.
    """
    metadata = artifact.metadata
    if metadata is None or metadata.layout == layout:
        return artifact
    if layout == "slim":
        plain = without_fold(artifact, metadata.source_gate, gate_folded)
        changed = msgspec.structs.replace(metadata, layout="slim", gate=metadata.source_gate, fold_nudges={})
        return Arrays(plain.arrays, changed)
    arrays = dict(artifact.arrays)
    nudges: dict[str, list[int]] = {}
    for name in gate_folded:
        values, lost = fold(arrays[name], metadata.source_gate / TIMM_GATE)
        arrays[name] = values
        if lost:
            nudges[name] = lost
    return Arrays(arrays, msgspec.structs.replace(metadata, layout="timm", gate=TIMM_GATE, fold_nudges=nudges))


def without_batch_norms(artifact: Arrays, network: Network) -> Arrays:
    """The same port, in layout ``slim``, with batch norms folded into the convolutions before them."""
    arrays = artifact.arrays
    folded: dict[str, np.ndarray] = {}
    for layer in layers(network, class_count(artifact.arrays)):
        module, norm = layer.module, layer.norm
        weight, bias = arrays[f"{module}.weight"], arrays.get(f"{module}.bias")
        if norm is not None:
            weight, bias = fold_batch_norm(arrays, module, norm, network.epsilon)
        assert bias is not None
        folded |= {f"{module}.weight": weight, f"{module}.bias": bias}
    metadata = artifact.metadata and msgspec.structs.replace(artifact.metadata, bn_folded=True)
    return Arrays(folded, metadata)


def without_fold(artifact: Arrays, gate: float, gate_folded: Iterable[str]) -> Arrays:
    """Weights made for gate 1/6 brought to ``gate``; bit for bit where metadata tells what rounding took."""
    nudges = artifact.metadata.fold_nudges if artifact.metadata else {}
    arrays = dict(artifact.arrays)
    for name in gate_folded:
        values = unfold(arrays[name], gate / TIMM_GATE, nudges.get(name, []))
        arrays[name] = values
    return Arrays(arrays, artifact.metadata)
