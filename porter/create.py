"""``create_model``: a MobileNetV3 with the weights of an artifact or straight from a TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from porter.artifacts.files import SUFFIXES, Artifact, load_artifact
from porter.artifacts.relayout import relayout, without_batch_norms
from porter.conversion import PathLike, carry_out_port, plan_port
from porter.errors import ArtifactError
from porter.loaders.weights import Weights
from porter.mapping.files import load_mapping, load_variant
from porter.mapping.gate import TIMM_GATE
from porter.mapping.network import Network, build_network
from porter.mapping.plan import ArtifactLayout
from porter.mapping.rules import expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.fake_quant import fake_quantize
from porter.network.mobilenet_v3 import MobileNetV3, MobileNetV3Features, initialize


def create_model(
    variant: str,
    checkpoint: PathLike | None = None,
    *,
    mapping: PathLike | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    dropout: float | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    layout: ArtifactLayout | None = None,
    weights: Weights = "auto",
    keep_background: bool = False,
    fake_quant: bool = False,
) -> MobileNetV3 | MobileNetV3Features:
    """Build ``variant`` and load ``checkpoint`` into it; returned in eval mode.

    ``checkpoint`` is a ``.pth`` or ``.safetensors`` (ours, or any with timm's keys), any TensorFlow source that
    ``open_checkpoint`` takes, or None for untrained weights. ``num_classes`` other than the checkpoint's
    gives a new classifier (0: none) above loaded features; a source without one (a feature extractor) gives the
    pooled features; ``in_chans`` other than 3 adapts the first
    convolution. ``layout`` chooses the definition: ``slim`` (gate 0.16667) or ``timm`` (gate 1/6, weights
    folded); by default as the artifact was written, slim's for a TensorFlow source. ``features_only``
    gives the feature pyramid, ``out_indices`` some of it. ``mapping`` is a user's own mapping file of
    ``variant``. ``fake_quant`` simulates the 8 bits that the source was trained for, in slim's definition with
    batch norms folded, computing in float64. Raises PorterError.
    """
    chosen = load_variant(variant) if mapping is None else load_mapping(Path(mapping))
    network = build_network(chosen)
    if fake_quant:
        layout = "slim"  # its ranges belong to these weights
    if checkpoint is None:
        artifact = None
        gate = TIMM_GATE if layout == "timm" else network.gate
        classes = 1000
    else:
        artifact = _load(Path(checkpoint), chosen, network, variant, mapping, layout, weights, keep_background)
        gate = artifact.metadata.gate if artifact.metadata else TIMM_GATE
        classes = len(artifact.tensors.get("classifier.bias", ()))
        network = _as_stored(network, artifact)
        if fake_quant and not network.folded:
            artifact = without_batch_norms(artifact, network)
            network = replace(network, folded=True)
    network = replace(network, gate=gate, channels=in_chans or network.channels)
    model: MobileNetV3 | MobileNetV3Features
    if features_only:
        model = MobileNetV3Features(network, out_indices)
    else:
        model = MobileNetV3(network, classes if num_classes is None else num_classes, dropout)
    if artifact is None:
        initialize(model)
    else:
        _fill(model, artifact.tensors, str(checkpoint))
    if fake_quant:
        ranges = artifact.metadata.ranges if artifact and artifact.metadata else {}
        if not ranges:
            raise ArtifactError(f"{checkpoint}: holds no ranges of fake quantisation; it was not trained for 8 bits")
        fake_quantize(model, ranges)
    return model.eval()


def _as_stored(network: Network, artifact: Artifact) -> Network:
    """``network`` with as much of it as ``artifact`` holds: batch norms or biases, a head or none."""
    folded = artifact.metadata.folded if artifact.metadata else "conv_stem.bias" in artifact.tensors
    return replace(network, folded=folded, head=network.head if "conv_head.weight" in artifact.tensors else 0)


def _load(
    path: Path,
    chosen: VariantMapping,
    network: Network,
    variant: str,
    mapping: PathLike | None,
    layout: ArtifactLayout | None,
    weights: Weights,
    keep_background: bool,
) -> Artifact:
    if path.suffix not in SUFFIXES:
        port = plan_port(
            path, variant, mapping=mapping, weights=weights, layout=layout or "slim", keep_background=keep_background
        )
        return Artifact(*carry_out_port(port))
    artifact = load_artifact(path)
    if artifact.metadata is None:
        if layout == "slim":
            raise ArtifactError(f"{path}: not written by mnv3-port, so its gate fold is not known; use layout 'timm'")
        return artifact
    if artifact.metadata.variant != chosen.variant:
        raise ArtifactError(f"{path}: is a {artifact.metadata.variant} artifact, not {chosen.variant}")
    folded = [e.target for e in expected_variables(chosen, network, classes=1) if e.folds_gate]
    return artifact if layout is None else relayout(artifact, layout, folded)


def _fill(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load ``tensors`` strictly, but for a head that was asked to differ and an adapted stem."""
    own = model.state_dict()
    head = ("classifier.", "conv_head.", "bn2.")
    state = {name: value for name, value in tensors.items() if name in own or not name.startswith(head)}
    stem = "conv_stem.weight"
    if stem in state and state[stem].shape[1] != own[stem].shape[1]:
        state[stem] = _adapt_stem(state[stem], own[stem].shape[1])
    for name in ("classifier.weight", "classifier.bias"):
        if name in own and (name not in state or state[name].shape[:1] != own[name].shape[:1]):
            initialize(model.get_submodule("classifier"))  # another number of classes
            state[name] = own[name]
    problems = [f"{name}: missing" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    problems += [f"{name}: not in the network" for name in state if name not in own]
    problems += [
        f"{name}: shape {list(value.shape)}, the network has {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if problems:
        raise ArtifactError(f"{source}: does not fit the network ({len(problems)} problems):", problems[:20])
    model.load_state_dict(state, strict=False)


def _adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Weights (O, 3, kH, kW) for another number of input channels: grey is the sum, others repeat RGB rescaled."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // weight.shape[1])
    return torch.cat([weight] * repeats, 1)[:, :channels] * (weight.shape[1] / channels)
