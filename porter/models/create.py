"""``create_model``: a MobileNetV3 with the weights of an artifact or straight from a TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, overload

import msgspec
import torch
from torch import Tensor, nn

from porter.artifacts.artifact import PREFIXES, Artifact, ArtifactFile, find_artifact, load_artifact
from porter.artifacts.metadata import KEY, Metadata, encode
from porter.artifacts.relayout import relayout, without_batch_norms
from porter.artifacts.variant import check_classifier, check_fits, class_count, mapping_of, network_as_stored
from porter.errors import ArtifactError, MappingError, Option, PorterError
from porter.mapping.files import load_mapping, load_variant, variant_named
from porter.mapping.options import DEFAULT_OPTIONS, ArtifactLayout, PathLike, PortOptions
from porter.mapping.ranges import Range
from porter.mapping.schema import VariantMapping
from porter.models.build import Whole, build_model
from porter.models.fake_quant import EIGHT_BITS_ENTRY, fake_quantize
from porter.models.feature_info import pyramid
from porter.models.fold import fold
from porter.models.mobilenet_v3 import MobileNetV3, MobileNetV3Features, Trunk, initialize
from porter.network.network import TIMM_GATE, Network, build_network, with_output_stride
from porter.network.nodes import nodes
from porter.network.spec import Input, Pooling, TailLayer
from porter.port import carry_out_port, plan_port
from porter.process import keep_freed_memory
from porter.sources import Checkpoint
from porter.sources.weights import Weights

Source = PathLike | ArtifactFile | Checkpoint
HEAD = ("classifier", "conv_head", "bn2", "act2", "global_pool")  # absent in a feature pyramid and below another head


@dataclass(frozen=True)
class Changes:
    """Changes to the network; None keeps what the weights have."""

    num_classes: int | None = None
    in_chans: int | None = None
    dropout: float | None = None
    drop_path_rate: float = 0.0
    global_pool: str | None = None
    features_only: bool = False
    out_indices: Sequence[int] | None = None
    output_stride: int | None = None
    fold_bn: bool = False


NO_CHANGES = Changes()


class OpenedModel(NamedTuple):
    """A model in eval mode, and where it comes from.

    ``given`` is what the user named. ``metadata`` is None where another tool wrote the weights, and for untrained ones;
    ``digests`` are SHA-256 by file name. ``fake_quant`` is true if it computes the 8 bits of its source.
    """

    given: str
    model: Whole | MobileNetV3Features
    mapping: VariantMapping
    metadata: Metadata | None
    digests: dict[str, str]
    fake_quant: bool

    @property
    def input(self) -> Input:
        """The image that it takes; the levels of its pixels only where it computes 8 bits."""
        spec = self.mapping.input
        return spec if self.fake_quant else msgspec.structs.replace(spec, levels=None)

    @property
    def whole(self) -> Whole:
        """The model. Only valid without ``features_only``."""
        assert not isinstance(self.model, MobileNetV3Features)
        return self.model

    @property
    def classifier(self) -> MobileNetV3:
        """The model, which must be a classifier. Raises PorterError where it is a segmenter or detector."""
        if not isinstance(self.model, MobileNetV3):
            raise PorterError(f"a {self.mapping.variant} port is a {self.whole.network.kind}, no classifier")
        return self.model


@overload
def create_model(
    variant: str,
    checkpoint: PathLike | None = None,
    *,
    mapping: PathLike | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    dropout: float | None = None,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    features_only: Literal[False] = False,
    out_indices: None = None,
    layout: ArtifactLayout | None = None,
    weights: Weights = "auto",
    keep_background: bool = False,
    fake_quant: bool | None = None,
    output_stride: int | None = None,
    fold_bn: bool = False,
) -> MobileNetV3: ...


@overload
def create_model(
    variant: str,
    checkpoint: PathLike | None = None,
    *,
    mapping: PathLike | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    dropout: float | None = None,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    layout: ArtifactLayout | None = None,
    weights: Weights = "auto",
    keep_background: bool = False,
    fake_quant: bool | None = None,
    output_stride: int | None = None,
    fold_bn: bool = False,
) -> MobileNetV3Features: ...


def create_model(
    variant: str,
    checkpoint: PathLike | None = None,
    *,
    mapping: PathLike | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    dropout: float | None = None,
    drop_path_rate: float = 0.0,
    global_pool: str | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    layout: ArtifactLayout | None = None,
    weights: Weights = "auto",
    keep_background: bool = False,
    fake_quant: bool | None = None,
    output_stride: int | None = None,
    fold_bn: bool = False,
) -> nn.Module:
    """Build a MobileNetV3 and load weights into it.

    Args:
        variant: One of ``list_variants()``, timm's name of one, or a file of weights, whose variant is found.
        checkpoint: A ``.pth`` or ``.safetensors`` (ours, or with timm's keys), a release's folder, anything that
            ``open_checkpoint`` takes, or the URL of any of these. None: untrained weights.
        mapping: A mapping file of your own.
        num_classes: Another number than the checkpoint's gives a new classifier, 0 the (N, features) embedding.
        in_chans: Channels of the images; the first convolution is adapted.
        dropout: Probability before the classifier, in training mode only.
        drop_path_rate: Probability of dropping the last block's path, in training mode only; earlier ones have less.
        global_pool: timm's word for the pooling: ``avg``, ``max``, or ``""`` for a map of ``num_classes=0``. A state
            dict does not say the last one: give it again.
        features_only: Give the feature pyramid, a list of (N, C, H / r, W / r) maps.
        out_indices: Some maps of the pyramid, in this order; negative ones count from the end.
        output_stride: How many pixels a position of the last map stands for, 8 or 16: dilations instead of strides.
        layout: By default ``timm``, whatever the source: gate 1/6, and slim's 0.16667 folded into the weights. ``slim``
            keeps that gate and the weights; its state dict has an entry more, which says so, and no other class
            loads it strictly. A model that computes 8 bits is in ``slim``, as its levels are.
        weights: ``ema`` or ``raw`` where both exist; ``auto`` prefers the averages, unless a SavedModel's graph has the
            raw weights.
        keep_background: Keep class 0 of slim's 1,001.
        fake_quant: Weights that were trained for 8 bits compute them, in float64; False opens them as a float network.
        fold_bn: Fold the batch norms for inference, as ``porter.fold`` does.

    Returns:
        The model, in eval mode: (N, channels, H, W) -> (N, num_classes) logits. Images are RGB in [-1, 1], or what
        ``pretrained_cfg`` has as mean and std if the source states others. State-dict keys are timm's. A variant with
        another head gives an ``LRASPP``, with torchvision's keys, or an ``SSDLite``. On CUDA, PyTorch computes
        convolutions in TF32 unless ``torch.backends.cudnn.allow_tf32`` is False, three digits short.

    Raises:
        PorterError: On weights that do not fit, or an argument that is none of those allowed.

    Example:
        >>> model = porter.create_model("small_075", source)
        >>> model(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
        >>> pyramid = porter.create_model("small_075", source, features_only=True)
        >>> pyramid.feature_info.channels()
        [16, 16, 24, 40, 432]
    """
    options = PortOptions(None, mapping, weights, "timm", keep_background, fake_quant=fake_quant)
    changes = Changes(
        *(num_classes, in_chans, dropout, drop_path_rate, global_pool, features_only, out_indices, output_stride),
        fold_bn,
    )
    source = checkpoint
    name: str | None = str(variant)
    if checkpoint is None and mapping is None and variant_named(str(variant)) is None:
        source, name = variant, None  # weights that know their variant
        there = any(Path(f"{variant}{ending}").exists() for ending in ("", ".index"))  # a file, or a prefix
        if "://" not in str(variant) and not there and find_artifact(variant) is None:
            load_variant(str(variant))  # raises an error that lists the variants
    return open_model(source, replace(options, variant=name), layout, changes).model


def open_model(
    source: Source | None,
    options: PortOptions = DEFAULT_OPTIONS,
    layout: ArtifactLayout | None = None,
    changes: Changes = NO_CHANGES,
) -> OpenedModel:
    """Like ``create_model``, with the model's origin. ``layout`` counts, and that of ``options`` does not."""
    _check(options, layout, changes)
    keep_freed_memory()
    name = _name(source)
    artifact, mapping, network, digests = _open_source(source, options, layout, changes.features_only)
    ranges = artifact.metadata.ranges if artifact and artifact.metadata else {}
    if options.fake_quant and not ranges:
        raise ArtifactError(f"{name}: holds no ranges of fake quantisation; it was not trained for 8 bits")
    if artifact and artifact.arrays.pop(EIGHT_BITS_ENTRY, None) is not None and options.fake_quant is None:
        raise ArtifactError(
            f"{name}: the state dict of a model that computes 8 bits, without the ranges that it rounds to; keep the "
            "file that it was opened from. To open its float network use",
            option=Option("fake_quant", value=False),
        )
    fake_quant = bool(ranges) and options.fake_quant is not False
    if fake_quant and layout == "timm":
        raise ArtifactError(f"{name}: computes 8 bits in layout slim only; leave layout out, or fake_quant=False")
    if artifact is not None:
        if fake_quant:  # the ranges belong to these weights
            artifact = relayout(artifact, "slim", network)
            if not artifact.metadata or not artifact.metadata.bn_folded:
                artifact = without_batch_norms(artifact, network)
        network = network_as_stored(network, artifact.arrays, artifact.metadata, artifact.gate)
    adapted = changes.in_chans not in (None, network.channels)
    if changes.in_chans is not None and adapted:
        mapping = _for_channels(mapping, changes.in_chans)
        network = replace(network, channels=changes.in_chans)
    if changes.output_stride is not None:
        try:
            network = replace(network, blocks=with_output_stride(mapping, changes.output_stride).blocks)
        except ValueError:
            strides = ", ".join(str(tap.reduction) for tap in pyramid(with_output_stride(mapping, None)))
            raise PorterError(f"output_stride={changes.output_stride!r}: use one of {strides}") from None
    if artifact is not None:
        check_fits(network, artifact.arrays, name)
        if changes.num_classes is None and not changes.features_only:
            check_classifier(network, artifact.arrays, name)
    model = _built(network, artifact, changes)
    if isinstance(model, Trunk):
        model.set_drop_path(changes.drop_path_rate)
    if artifact is None:
        initialize(model)
    else:
        _fill(model, artifact.tensors, name, changes)
        if artifact.metadata and not (fake_quant or changes.features_only):
            _keep_origin(model, artifact.metadata, mapping, changes.output_stride, adapted)
    if fake_quant:
        assert artifact is not None
        new_head = changes.num_classes not in (None, class_count(artifact.arrays))
        fake_quantize(model, _ranges_of(model, ranges, new_head, name))
    model.pretrained_cfg = pretrained_cfg(mapping, getattr(model, "num_classes", 0))
    if changes.fold_bn:
        model = fold(model)
    return OpenedModel(name, model.eval(), mapping, artifact.metadata if artifact else None, digests, fake_quant)


def _check(options: PortOptions, layout: object, changes: Changes) -> None:
    """Raise PorterError for an invalid argument, before anything is read."""
    for name, value, allowed in (
        ("layout", layout, (None, *get_args(ArtifactLayout))),
        ("weights", options.weights, get_args(Weights)),
        ("fake_quant", options.fake_quant, (None, True, False)),
    ):
        if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
            raise PorterError(f"{name}={value!r}: use one of {', '.join(repr(one) for one in allowed)}")
    for name, number, least in (("num_classes", changes.num_classes, 0), ("in_chans", changes.in_chans, 1)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise PorterError(f"{name}={number!r}: use a whole number from {least} on")
    for name, rate in (("dropout", changes.dropout), ("drop_path_rate", changes.drop_path_rate)):
        if rate is not None and not 0 <= rate <= 1:
            raise PorterError(f"{name}={rate!r}: use a probability, from 0 to 1")
    if changes.out_indices is not None and not changes.features_only:
        raise PorterError("out_indices: only with features_only=True")


def _open_source(
    source: Source | None, options: PortOptions, layout: ArtifactLayout | None, features_only: bool
) -> tuple[Artifact | None, VariantMapping, Network, dict[str, str]]:
    """The weights of ``source`` in ``layout`` (timm's for None), the mapping, the network, and digests of files."""
    if source is None:
        mapping = (
            load_mapping(Path(options.mapping)) if options.mapping is not None else load_variant(str(options.variant))
        )
        network = build_network(mapping)
        if mapping.top == "none":
            network = replace(network, embedding=0, backbone=True)
        return None, mapping, network if layout == "slim" else replace(network, gate=TIMM_GATE), {}
    if isinstance(source, ArtifactFile):
        file: ArtifactFile | None = source
    else:
        file = None if isinstance(source, Checkpoint) else find_artifact(source)
    given = _name(source)
    if file is None:
        assert not isinstance(source, ArtifactFile)
        name = options.variant and (variant_named(options.variant) or options.variant)
        options = replace(options, variant=name, layout=layout or "timm")
        try:
            port = plan_port(source, options)
        except MappingError:
            if not features_only:
                raise
            port = plan_port(source, replace(options, backbone=True))
        if features_only and port.network.head is not None:
            port = plan_port(source, replace(options, variant=None, backbone=True))
        return carry_out_port(port), port.mapping, port.network, port.checkpoint.digests()
    artifact = load_artifact(file)
    mapping = mapping_of(artifact.metadata, options, file.mapping, given)
    network = build_network(mapping)
    if layout == "slim" and artifact.metadata is None and artifact.gate == TIMM_GATE and network.stated_gate:
        raise ArtifactError(f"{given}: not written by mnv3-port, so its gate fold is not known; use layout 'timm'")
    artifact = relayout(artifact, layout or "timm", network)
    return artifact, mapping, network, file.digests


def _name(source: Source | None) -> str:
    return source.given if isinstance(source, (ArtifactFile, Checkpoint)) else str(source)


def _built(network: Network, artifact: Artifact | None, changes: Changes) -> Whole | MobileNetV3Features:
    if changes.features_only and network.head is not None:
        raise PorterError(
            "features_only: of a segmenter or detector, port the backbone alone (convert with backbone=True)"
        )
    if changes.features_only:
        count = len(pyramid(network))
        wrong = [i for i in changes.out_indices or () if isinstance(i, bool) or i not in range(-count, count)]
        if wrong:
            raise PorterError(f"out_indices: {wrong[0]!r} is none of 0 to {count - 1}, or -{count} to -1")
        return MobileNetV3Features(network, changes.out_indices)
    if changes.num_classes == 0 and network.head is not None:
        raise PorterError(f"num_classes=0: only a classifier gives an embedding; a {network.kind} needs 1 or more")
    classes = 0 if network.backbone else 1000
    if artifact is not None:
        classes = class_count(artifact.arrays)
    if changes.num_classes is not None:
        classes = changes.num_classes
    model = build_model(network, classes, changes.dropout)
    if changes.global_pool is not None:
        if not isinstance(model, MobileNetV3):
            raise PorterError("global_pool: only a classifier pools")
        try:
            model.pool_by(changes.global_pool, classes)
        except ValueError as error:
            raise PorterError(str(error)) from error
    return model


def _ranges_of(model: nn.Module, ranges: dict[str, Range], new_head: bool, source: str) -> dict[str, Range]:
    """The ranges of modules in ``model``, without those of a head that was removed or replaced."""
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    found = {
        name: limits
        for name, limits in ranges.items()
        if (name in modules or name == "input") and not (new_head and name.startswith("classifier"))
    }
    strange = [name for name in ranges if name not in modules and name != "input" and not name.startswith(HEAD)]
    if strange:
        raise ArtifactError(f"{source}: ranges of {strange[0]}, which is no part of the network; damaged metadata?")
    return found


def _fill(model: Whole | MobileNetV3Features, tensors: dict[str, Tensor], source: str, changes: Changes) -> None:
    """Load ``tensors`` strictly, except for a replaced head and a first convolution of other channels."""
    own, network = model.state_dict(), model.network
    head = ("classifier.", "conv_head.", "bn2.")
    state = {name: value for name, value in tensors.items() if name in own or not name.startswith(head)}
    stem = f"{nodes(network, classes=0)[0].layer}.weight"
    if changes.in_chans is not None and stem in state and state[stem].shape[1] != own[stem].shape[1]:
        state[stem] = _adapt_stem(state[stem], own[stem].shape[1])
    for module in network.class_layers if changes.num_classes is not None else ():
        for name in (f"{module}.weight", f"{module}.bias"):
            if name in own and (name not in state or state[name].shape[:1] != own[name].shape[:1]):
                initialize(model.get_submodule(module))  # another number of classes
                state[name] = own[name]
    problems = [f"{name}: missing" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    problems += [f"{name}: not in the network" for name in state if name not in own]
    problems += [
        f"{name}: shape {list(value.shape)}, the network has {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if problems:
        raise ArtifactError(f"{source}: does not fit the network ({len(problems)} problems):", problems)
    model.load_state_dict(state, strict=False)


def _for_channels(mapping: VariantMapping, channels: int) -> VariantMapping:
    """``mapping`` for images of other channels, which get the scaling of its own in turn."""
    spec = mapping.input

    def in_turn(values: list[Any]) -> list[Any]:
        return [values[channel % len(values)] for channel in range(channels)]

    levels = in_turn(spec.levels) if spec.levels and len(spec.levels) > 1 else spec.levels
    facts = {"mean": in_turn(spec.mean), "std": in_turn(spec.std), "levels": levels}
    return msgspec.structs.replace(mapping, input=msgspec.structs.replace(spec, channels=channels, **facts))


def _keep_origin(
    model: nn.Module, metadata: Metadata, mapping: VariantMapping, output_stride: int | None, adapted: bool
) -> None:
    """Have state dicts of ``model`` say what ``metadata`` do: entries do not tell scaling or activations.

    With the output stride, and the image of ``mapping`` that it was ``adapted`` to, if it was.
    """
    stated = metadata.stated
    if output_stride is not None:
        stated = msgspec.structs.replace(stated, output_stride=output_stride)
    if adapted:
        stated = msgspec.structs.replace(stated, input=mapping.input)
    metadata, table = msgspec.structs.replace(metadata, stated=stated), mapping.network
    hook = partial(_tell_origin, metadata, (tuple(table.tail), table.pooling))
    model.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]


def _tell_origin(
    metadata: Metadata, behind: tuple[tuple[TailLayer, ...], Pooling], model: Whole, state: Any, prefix: str, _: object
) -> None:
    """Attach ``metadata`` to a state dict of ``model``, as it is now; its source had ``behind`` its last map."""
    while prefix.startswith(PREFIXES):
        prefix = prefix.removeprefix(next(one for one in PREFIXES if prefix.startswith(one)))
    if prefix:
        return  # a part of another network
    network, stated, count = model.network, metadata.stated, model.num_classes
    features = isinstance(model, MobileNetV3) and model.pooled and not count and not network.embedding  # pooled ones
    if features or (network.tail, network.pooling) != behind:
        now = {"tail": list(network.tail), "pooling": network.pooling, "flat": list(network.flat) or None}
        stated = msgspec.structs.replace(stated, **now)
    if count != metadata.num_classes:
        metadata = msgspec.structs.replace(metadata, background_dropped=False, background=b"", class_names=[])
    metadata = msgspec.structs.replace(metadata, num_classes=count, stated=stated, bn_folded=network.bn_folded)
    state._metadata[KEY] = {"json": encode(metadata)}


def _adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Weights (O, 3, kH, kW) for another number of input channels: grey is the sum, others repeat RGB rescaled."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // weight.shape[1])
    return torch.cat([weight] * repeats, 1)[:, :channels] * (weight.shape[1] / channels)


def pretrained_cfg(mapping: VariantMapping, num_classes: int) -> dict[str, Any]:
    """The keys that ``timm.data.resolve_data_config`` and a Hugging Face ``config.json`` read."""
    spec = mapping.input
    return {
        "architecture": mapping.timm or mapping.variant,
        "custom_load": False,
        "input_size": (spec.channels, *spec.sides),
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": spec.crop,
        "crop_mode": "center",
        "mean": tuple(spec.mean),
        "std": tuple(spec.std),
        "num_classes": num_classes,
        "pool_size": (7, 7),  # 224 / 32
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }
