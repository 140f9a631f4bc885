"""Moving an artifact's weights between definitions of the squeeze-excite gate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from porter.artifacts.artifact import Artifact
from porter.artifacts.variant import class_count
from porter.errors import ArtifactError
from porter.mapping.apply import fold_batch_norm
from porter.mapping.gate import GATE_IN_16_BITS, fold, unfold
from porter.mapping.options import ArtifactLayout
from porter.network.network import GATE_ENTRY, TIMM_GATE, Network
from porter.network.node import behind_gates
from porter.network.nodes import nodes

if TYPE_CHECKING:
    import numpy as np


def relayout(artifact: Artifact, layout: ArtifactLayout, network: Network) -> Artifact:
    """The same port for the other gate: ``slim`` undoes the fold, ``timm`` folds.

    The fold is undone bit for bit where metadata has what rounding took. The gate of ``network`` is slim's constant,
    for a file that does not say it. Raises ArtifactError where the metadata do not fit the weights.
    """
    import numpy as np

    metadata, gate, slim_gate = artifact.metadata, artifact.gate, network.gate
    folding = [f"{layer}.weight" for layer in behind_gates(nodes(network, classes=1))]
    gate_folded = [name for name in folding if name in artifact.arrays]
    if GATE_ENTRY in artifact.arrays and math.isclose(gate, slim_gate, rel_tol=GATE_IN_16_BITS):
        gate = slim_gate  # rounded with the weights
    source = metadata.source_gate if metadata else slim_gate if gate == TIMM_GATE else gate
    wanted = TIMM_GATE if layout == "timm" else source
    arrays = {name: values for name, values in artifact.arrays.items() if name != GATE_ENTRY}
    nudges = dict(metadata.fold_nudges) if metadata else {}
    for name in gate_folded if gate != wanted else ():
        # In 16 bits, a ratio of 1.00002 would change nothing
        values = arrays[name].astype(np.promote_types(arrays[name].dtype, np.float32), copy=False)
        if layout == "timm":
            arrays[name], lost = fold(values, gate / TIMM_GATE)
            nudges |= {name: lost} if lost else {}
        else:
            try:
                arrays[name] = unfold(values, wanted / TIMM_GATE, nudges.pop(name, []))
            except ValueError as error:
                raise ArtifactError(f"entry {name}: its metadata have {error}; damaged") from error
    if gate_folded and wanted != TIMM_GATE:
        arrays[GATE_ENTRY] = np.array(wanted, np.float32)
    changed = metadata and msgspec.structs.replace(metadata, layout=layout, gate=wanted, fold_nudges=nudges)
    return Artifact(arrays, changed)


def without_batch_norms(artifact: Artifact, network: Network) -> Artifact:
    """The same port, in layout ``slim``, with batch norms folded into the convolutions before them."""
    arrays = artifact.arrays
    folded: dict[str, np.ndarray] = {}
    for node in (node for node in nodes(network, class_count(artifact.arrays)) if node.layer):
        module = node.layer
        weight, bias = arrays[f"{module}.weight"], arrays.get(f"{module}.bias")
        if node.norm:
            weight, bias = fold_batch_norm(arrays, module, node.norm, node.epsilon)
        assert bias is not None
        folded |= {f"{module}.weight": weight, f"{module}.bias": bias}
    alone = [node.norm for node in nodes(network, class_count(arrays)) if node.operation == "batch_norm"]
    folded |= {name: values for name, values in arrays.items() if name.rpartition(".")[0] in alone}
    if GATE_ENTRY in arrays:
        folded[GATE_ENTRY] = arrays[GATE_ENTRY]
    metadata = artifact.metadata and msgspec.structs.replace(artifact.metadata, bn_folded=True)
    return Artifact(folded, metadata)
