"""The plan of a port: which variable becomes which state-dict entry. It is strict, and reads no tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from porter.errors import MappingError
from porter.mapping.axes import target_shape
from porter.mapping.gate import GATE_ROUNDING, GATE_SHIFT, as_decimal
from porter.mapping.options import ArtifactLayout, PortOptions
from porter.mapping.ranges import FIELDS
from porter.mapping.rules import Expected, expected_variables, module_outputs
from porter.mapping.schema import VariantMapping
from porter.network.layers import Shape, is_weight, layers, state_dict_shapes
from porter.network.network import TIMM_GATE, Network, build_network
from porter.network.spec import Segmentation
from porter.sources import Checkpoint
from porter.sources.dtypes import FLOATS
from porter.sources.graph_operations import graph_operations

NOT_BACKBONE = "not of the backbone"


@dataclass(frozen=True)
class Step:
    """One tensor to carry over. Shapes: ``source_shape`` TensorFlow's, ``target_shape`` PyTorch's.

    ``drop_class`` is the class left out along the target's first axis; ``scale`` the gate fold (1: none);
    ``shift`` what is added to each value.
    """

    source: str
    target: str
    axes: str
    source_shape: Shape
    target_shape: Shape
    drop_class: int | None
    scale: float
    shift: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All steps, the entries of the state dict in its order (``targets``), and what is left aside.

    Two kinds of entries have no step: counters of batches, which TensorFlow lacks, are set to zero, and the gate is
    stated where it is not 1/6. ``gate`` is the squeeze-excite constant that the resulting weights are made for.
    ``norms`` are the batch norms to fold into the convolutions before them, by convolution; ``bn_folded`` is true where
    the result has none, for whatever reason.
    ``ranges`` names, by module or entry, the source's range (``.../min``, ``.../max``) that it was quantised to: the
    port computes in 8 bits. ``dequantized`` tells that the source has ranges, and they are left out as was asked.
    """

    variant: str
    layout: ArtifactLayout
    num_classes: int
    background_dropped: bool
    gate: float
    source_gate: float
    steps: tuple[Step, ...]
    targets: tuple[str, ...]
    ignored: Mapping[str, str]
    bn_folded: bool
    norms: Mapping[str, str]
    epsilon: float
    ranges: Mapping[str, str]
    dequantized: bool

    @property
    def folded(self) -> list[str]:
        """The entries that something is folded into."""
        norms = [f"{module}.{part}" for module in self.norms for part in ("weight", "bias")]
        return norms + [step.target for step in self.steps if step.scale != 1.0]


class Fit(NamedTuple):
    """The network of a mapping as a checkpoint has it, and the variables that it needs.

    ``classes`` are the outputs of the classifier, background included; 0 without one.
    """

    network: Network
    classes: int
    expected: list[Expected]


def make_plan(mapping: VariantMapping, fitted: Fit, checkpoint: Checkpoint, options: PortOptions) -> Plan:
    """Plan the port of ``checkpoint`` into the state dict of the network that ``fit`` found.

    Raises MappingError that lists every variable missing, left over or of another shape, every target unfilled,
    filled twice or of another shape.
    """
    network, classes, expected = fitted
    dropped, kept = _classes(mapping, classes, checkpoint, options)
    gate = TIMM_GATE if options.layout == "timm" else network.gate
    drop_class = mapping.classes.background if dropped else None
    steps = [_step(want, checkpoint, drop_class, network.gate / gate) for want in expected]
    ranges = _ranges(mapping, network, classes, checkpoint)
    left_over, ignored = _left_over(mapping, checkpoint, expected, ranges)
    problems = [
        *(problem for want in expected if (problem := _misfit(want, checkpoint))),
        *(
            f"{name}/max: missing, but {name}/min is there"
            for name in ranges.values()
            if f"{name}/max" not in checkpoint
        ),
        *(f"{name}: in the checkpoint, but no rule uses or ignores it" for name in left_over),
        *_target_problems(steps, state_dict_shapes(replace(network, gate=gate), kept)),
    ]
    if problems:
        raise MappingError(
            f"{checkpoint.given}: does not fit the mapping of {mapping.variant} ({len(problems)} problems):", problems
        )
    if options.fake_quant and not ranges:
        raise MappingError(f"{checkpoint.given}: holds no ranges of fake quantisation; it was not trained for 8 bits")
    if options.fold_bn and network.inner_map is not None:
        raise MappingError(
            f"{checkpoint.given}: batch norms of a segmenter or detector are not folded; leave fold_bn out"
        )
    bn_folded = options.fold_bn or network.bn_folded
    norms_to_fold = options.fold_bn and not network.bn_folded
    return Plan(
        variant=mapping.variant,
        layout=options.layout,
        num_classes=kept,
        background_dropped=dropped,
        gate=gate,
        source_gate=network.gate,
        steps=tuple(steps),
        targets=tuple(state_dict_shapes(replace(network, bn_folded=bn_folded, gate=gate), kept)),
        ignored=ignored,
        bn_folded=bn_folded,
        norms={layer.module: layer.norm for layer in layers(network, kept) if layer.norm and norms_to_fold},
        epsilon=network.epsilon,
        ranges={} if options.fake_quant is False else ranges,
        dequantized=options.fake_quant is False and bool(ranges),
    )


def _classes(mapping: VariantMapping, classes: int, checkpoint: Checkpoint, options: PortOptions) -> tuple[bool, int]:
    """Whether the background is dropped, and how many classes that leaves. Raises MappingError for another number."""
    background = mapping.classes.background
    dropped = background is not None and classes == mapping.classes.background_of and not options.keep_background
    kept = classes - dropped
    wanted = options.num_classes if options.num_classes is not None else mapping.classes.count
    if wanted is not None and wanted != kept:
        raise MappingError(
            f"{checkpoint.given}: the classifier has {kept} classes{' without background' if dropped else ''}, not "
            f"{wanted}; leave the count out to follow the checkpoint"
        )
    return dropped, kept


def _step(want: Expected, checkpoint: Checkpoint, drop_class: int | None, gate_ratio: float) -> Step:
    """How the variable ``want`` becomes an entry; ``gate_ratio`` is folded into weights that take it."""
    shape = target_shape(want.axes, want.shape)
    drop = drop_class if want.class_axis is not None else None
    if drop is not None:
        shape = (shape[0] - 1, *shape[1:])
    shifted = want.gate_shift and want.source in checkpoint and checkpoint[want.source].fused == "relu6"
    scale, shift = gate_ratio if want.folds_gate else 1.0, -GATE_SHIFT if shifted else 0.0
    return Step(want.source, want.target, want.axes, want.shape, shape, drop, scale, shift)


def _ranges(mapping: VariantMapping, network: Network, classes: int, checkpoint: Checkpoint) -> dict[str, str]:
    """Module or entry -> the source's name of the range that it was quantised to, where it has one."""
    candidates = module_outputs(mapping, network, classes)
    return {at: name for at, names in candidates.items() for name in names[::-1] if f"{name}/min" in checkpoint}


def _left_over(
    mapping: VariantMapping, checkpoint: Checkpoint, expected: list[Expected], ranges: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Variables that nothing uses or ignores; and those ignored, with the reason."""
    used = {want.source for want in expected} | {f"{name}/{field}" for name in ranges.values() for field in FIELDS}
    reasons = {name: ignore_reason(mapping, name) for name in checkpoint if name not in used}
    if mapping.top == "none":
        reasons = {name: reason or NOT_BACKBONE for name, reason in reasons.items()}
    ignored = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name, reason in reasons.items() if reason is None], dict(checkpoint.set_aside) | ignored


def ignore_reason(mapping: VariantMapping, name: str) -> str | None:
    """Why ``mapping`` ignores the variable ``name``, None where it does not."""
    return next((i.reason for i in mapping.ignore if fnmatch.fnmatchcase(name, i.pattern)), None)


def fit(mapping: VariantMapping, checkpoint: Checkpoint) -> Fit:
    """Fit the network of ``mapping`` to what ``checkpoint`` has.

    Where the mapping says that the top is optional, a checkpoint without classifier has 0 outputs, and one
    without the convolution after pooling a ``head`` of 0. Otherwise a missing classifier counts as 1 output.
    """
    network = build_network(mapping)
    if checkpoint.gate is not None:
        known = next((g for g in (network.gate, TIMM_GATE) if abs(g - checkpoint.gate) < GATE_ROUNDING), None)
        network = replace(network, gate=known or checkpoint.gate)
    if network.segmentation is not None:
        network = replace(network, segmentation=_as_in_graph(network.segmentation, mapping, checkpoint))
    if mapping.top == "none":
        return _fit_backbone(mapping, network, checkpoint)
    if network.detection is not None:
        return _fit_detector(mapping, network, checkpoint)
    expected = expected_variables(mapping, network, classes=1)
    for want in expected:
        variable = checkpoint.get(want.source)
        if want.class_axis is not None and variable is not None and len(variable.shape) > want.class_axis:
            classes = variable.shape[want.class_axis]
            return Fit(network, classes, [_with_classes(want, classes) for want in expected])
    if mapping.top == "required":
        return Fit(network, 1, expected)
    headless = replace(network, head=0)
    whole, bare = (expected_variables(mapping, net, classes=0) for net in (network, headless))
    if any(want.source in checkpoint for want in set(whole) - set(bare)):
        return Fit(network, 0, whole)
    return Fit(headless, 0, bare)


def _fit_backbone(mapping: VariantMapping, network: Network, checkpoint: Checkpoint) -> Fit:
    """Stem and blocks, and the last convolution where the network counts it among them and the checkpoint has it."""
    whole = replace(network, head=0, backbone=True)
    blocks = replace(whole, last=0)
    with_last, without = (expected_variables(mapping, net, classes=0) for net in (whole, blocks))
    if whole.pools_in_layers and any(want.source in checkpoint for want in set(with_last) - set(without)):
        return Fit(whole, 0, with_last)
    return Fit(blocks, 0, without)


def _fit_detector(mapping: VariantMapping, network: Network, checkpoint: Checkpoint) -> Fit:
    """A predictor has so many outputs for each of its boxes as there are classes, background included."""
    expected = expected_variables(mapping, network, classes=1)
    [biases] = [want.source for want in expected if want.target == "classes.0.1.bias"]
    shape = checkpoint[biases].shape if biases in checkpoint else ()
    classes = max(1, shape[0] // network.boxes[0]) if len(shape) == 1 else 1
    return Fit(network, classes, expected_variables(mapping, network, classes))


def _as_in_graph(head: Segmentation, mapping: VariantMapping, checkpoint: Checkpoint) -> Segmentation:
    """``head`` with the pooling and epsilon of the checkpoint's own graph, where there is one."""
    parent = mapping.scope.rpartition("/")[0]
    above = f"{parent}/" if parent else ""
    if f"{above}aspp0/weights" not in checkpoint:
        return head
    if checkpoint.format == "bundle":
        path = checkpoint.path.with_name(checkpoint.path.name + ".meta")
    else:
        path = checkpoint.path
    if checkpoint.format not in ("bundle", "graphdef") or not path.is_file():
        return head
    found = graph_operations(path)
    pooling = found.poolings.get(f"{above}AvgPool2D/AvgPool")
    if pooling is not None:
        head = msgspec.structs.replace(head, window=list(pooling.window), stride=list(pooling.stride))
    epsilons = [e for name, e in found.epsilons.items() if name.startswith(f"{above}aspp0/BatchNorm/FusedBatchNorm")]
    if epsilons:
        head = msgspec.structs.replace(head, epsilon=as_decimal(epsilons[0]))
    return head


def _with_classes(want: Expected, classes: int) -> Expected:
    axis = want.class_axis
    return want if axis is None else want._replace(shape=(*want.shape[:axis], classes, *want.shape[axis + 1 :]))


def _misfit(want: Expected, checkpoint: Checkpoint) -> str | None:
    variable = checkpoint.get(want.source)
    if variable is None:
        return f"{want.source}: missing in the checkpoint"
    if variable.shape != want.shape:
        return f"{want.source}: shape {list(variable.shape)}, expected {list(want.shape)}"
    if variable.dtype not in FLOATS:
        return f"{want.source}: dtype {variable.dtype}, expected a float"
    return None


def _target_problems(steps: list[Step], targets: Mapping[str, Shape]) -> list[str]:
    problems = []
    filled: dict[str, str] = {}
    for step in steps:
        if step.target in filled:
            problems.append(f"{step.target}: filled twice, from {filled[step.target]} and {step.source}")
        filled[step.target] = step.source
        if step.target not in targets:
            problems.append(f"{step.target}: the network has no such entry (from {step.source})")
        elif targets[step.target] != step.target_shape:
            problems.append(
                f"{step.target}: shape {list(step.target_shape)} from {step.source}, the network has "
                f"{list(targets[step.target])}"
            )
    problems += [f"{name}: no rule fills it" for name in targets if name not in filled and is_weight(name)]
    return problems
