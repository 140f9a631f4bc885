"""Moving an artifact's weights between definitions of the squeeze-excite gate."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import torch

from porter.architecture.layers import layers
from porter.architecture.network import Network
from porter.artifacts.files import Artifact
from porter.mapping.apply import fold_batch_norm
from porter.mapping.gate import TIMM_GATE, fold, unfold
from porter.mapping.options import ArtifactLayout


def relayout(artifact: Artifact, layout: ArtifactLayout, gate_folded: Iterable[str]) -> Artifact:
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
        return Artifact(plain.tensors, changed)
    tensors = dict(artifact.tensors)
    nudges: dict[str, list[int]] = {}
    for name in gate_folded:
        values, lost = fold(tensors[name].numpy(), metadata.source_gate / TIMM_GATE)
        tensors[name] = torch.from_numpy(values)
        if lost:
            nudges[name] = lost
    return Artifact(tensors, msgspec.structs.replace(metadata, layout="timm", gate=TIMM_GATE, fold_nudges=nudges))


def without_batch_norms(artifact: Artifact, network: Network) -> Artifact:
    """The same port, in layout ``slim``, with batch norms folded into the convolutions before them."""
    arrays = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers(network, len(artifact.tensors.get("classifier.bias", ()))):
        module, norm = layer.module, layer.norm
        weight, bias = arrays[f"{module}.weight"], arrays.get(f"{module}.bias")
        if norm is not None:
            weight, bias = fold_batch_norm(arrays, module, norm, network.epsilon)
        assert bias is not None
        tensors |= {f"{module}.weight": torch.from_numpy(weight), f"{module}.bias": torch.from_numpy(bias)}
    metadata = artifact.metadata and msgspec.structs.replace(artifact.metadata, bn_folded=True)
    return Artifact(tensors, metadata)


def without_fold(artifact: Artifact, gate: float, gate_folded: Iterable[str]) -> Artifact:
    """Weights made for gate 1/6 brought to ``gate``; bit for bit where metadata tells what rounding took."""
    nudges = artifact.metadata.fold_nudges if artifact.metadata else {}
    tensors = dict(artifact.tensors)
    for name in gate_folded:
        values = unfold(tensors[name].numpy(), gate / TIMM_GATE, nudges.get(name, []))
        tensors[name] = torch.from_numpy(values)
    return Artifact(tensors, artifact.metadata)
