"""Moving an artifact's weights between definitions of the squeeze-excite gate."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import torch

from porter.artifacts.files import Artifact
from porter.mapping.gate import TIMM_GATE, fold, unfold
from porter.mapping.plan import ArtifactLayout


def relayout(artifact: Artifact, layout: ArtifactLayout, folded: Iterable[str]) -> Artifact:
    """The same port for the other gate: ``slim`` undoes the fold bit for bit, ``timm`` folds.

    ``folded`` names the ``project`` weights that take the fold. An artifact without metadata or already in
    ``layout`` comes back as it is.
    """
    metadata = artifact.metadata
    if metadata is None or metadata.layout == layout:
        return artifact
    ratio = metadata.source_gate / TIMM_GATE
    tensors = dict(artifact.tensors)
    nudges: dict[str, list[int]] = {}
    for name in folded:
        values = tensors[name].numpy()
        if layout == "slim":
            changed = unfold(values, ratio, metadata.fold_nudges.get(name, []))
        else:
            changed, lost = fold(values, ratio)
            if lost:
                nudges[name] = lost
        tensors[name] = torch.from_numpy(changed)
    gate = metadata.source_gate if layout == "slim" else TIMM_GATE
    return Artifact(tensors, msgspec.structs.replace(metadata, layout=layout, gate=gate, fold_nudges=nudges))
