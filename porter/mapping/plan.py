"""The plan of a port: which variable becomes which state-dict entry. It is strict, and reads no values."""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from porter.errors import MappingError, Option
from porter.mapping.axes import AXES
from porter.mapping.gate import GATE_SHIFT
from porter.mapping.options import ArtifactLayout, PortOptions
from porter.mapping.ranges import FIELDS
from porter.mapping.rules import Expected, expected_variables, module_outputs
from porter.mapping.schema import VariantMapping
from porter.network.network import TIMM_GATE, Network, build_network
from porter.network.node import Shape
from porter.network.nodes import check_needs, is_weight, nodes, state_dict_shapes
from porter.sources import Checkpoint
from porter.sources.dtypes import FLOATS

# Of a .tflite's integers: in several operations (silu, selu), in float (elu), in a fixed point of its own (leaky_relu)
NOT_IN_8_BITS = ("elu", "leaky_relu", "selu", "silu")
NOT_BACKBONE = "not of the backbone"
NOT_SERVED = "not in the SavedModel's graph"  # a Normalization's statistics, which its graph holds as constants


@dataclass(frozen=True)
class Step:
    """One tensor to port. ``source_shape`` is TensorFlow's, ``target_shape`` PyTorch's.

    ``drop_class``: the class to leave out of the target's first axis. ``scale``: the gate fold (1: none). ``shift``:
    added to each value.
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
    """All steps, the entries of the state dict in its order (``targets``), and the variables left out (``ignored``).

    Three kinds of entries have no step: batch counters, which TensorFlow lacks, are zero, ``constants`` (value and
    length of a vector) are what the source leaves out, and the gate is stated if it is not 1/6. ``gate``: the squeeze-
    excite constant for which the new weights are made. ``norms``: batch norms to fold into the layers before them, by
    layer, with their epsilons. ``bn_folded``: True if the result has no batch norms, for whatever reason. ``ranges``:
    by module or entry, the source's name of its quantisation range (``.../min``, ``.../max``); the port then computes
    in 8 bits. ``dequantized``: True if the source has ranges and the options leave them out.
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
    norms: Mapping[str, tuple[str, float]]
    ranges: Mapping[str, str]
    dequantized: bool
    constants: Mapping[str, tuple[float, int]]

    @property
    def folded(self) -> list[str]:
        """The entries that have something folded in."""
        norms = [f"{module}.{part}" for module in self.norms for part in ("weight", "bias")]
        return norms + [step.target for step in self.steps if step.scale != 1.0]


class Fit(NamedTuple):
    """A mapping's network, adapted to a checkpoint, and the variables that it needs.

    ``classes``: outputs of the classifier, background included; 0 if there is none.
    """

    network: Network
    classes: int
    expected: list[Expected]


def make_plan(mapping: VariantMapping, fitted: Fit, checkpoint: Checkpoint, options: PortOptions) -> Plan:
    """Plan the port of ``checkpoint`` to the state dict of the network that ``fit`` found.

    Raises MappingError that lists every variable that is missing, left over or of another shape, and every target that
    is unfilled, filled twice or of another shape.
    """
    network, classes, expected = fitted
    dropped, kept = _classes(mapping, fitted, checkpoint, options)
    gate = TIMM_GATE if options.layout == "timm" else network.gate
    shapes, drop_class = state_dict_shapes(network, classes), mapping.classes.background if dropped else None
    by_class = [f"{layer}.{part}" for layer in network.class_layers for part in ("weight", "bias")]
    steps = []
    for want in expected:
        drop = drop_class if want.target in by_class else None
        steps.append(_step(want, shapes[want.target], checkpoint, drop, network.gate / gate))
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
        *_target_problems(steps, state_dict_shapes(replace(network, gate=gate), kept), mapping.constants),
    ]
    if problems:
        raise MappingError(
            f"{checkpoint.given}: does not fit the mapping of {mapping.variant} ({len(problems)} problems):", problems
        )
    if options.fake_quant and not ranges:
        raise MappingError(f"{checkpoint.given}: holds no ranges of fake quantisation; it was not trained for 8 bits")
    if ranges and network.head is not None and options.fake_quant is not False:
        raise MappingError(
            f"{checkpoint.given}: computes 8 bits, also behind its backbone, where the port does not. The backbone "
            "alone can be ported with its 8 bits; for the whole network in float use",
            option=Option("fake_quant", value=False),
        )
    strange = [one.activation for one in network.tail if one.activation in NOT_IN_8_BITS]
    if ranges and strange and options.fake_quant is not False:
        raise MappingError(
            f"{checkpoint.given}: computes 8 bits, and rounds the {strange[0]} of its classifier in a way that the "
            "port does not. For the network in float use",
            option=Option("fake_quant", value=False),
        )
    operations = checkpoint.graph.operations.values() if checkpoint.graph else ()
    rounded = [one for one in operations if one.kind == "fake_quant"]
    if rounded and not ranges and options.fake_quant is None:
        raise MappingError(
            f"{checkpoint.given}: rounds {len(rounded)} values to 8 bits in float ({rounded[0].name}), the port does "
            "not. The checkpoint or the 8-bit .tflite of this training keeps them; for the float network use",
            option=Option("fake_quant", value=False),
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
        norms={
            node.layer: (node.norm, node.epsilon)
            for node in nodes(network, kept)
            if node.layer and node.norm and norms_to_fold
        },
        ranges={} if options.fake_quant is False else ranges,
        dequantized=options.fake_quant is False and bool(ranges or rounded),
        constants={
            name: (value, state_dict_shapes(network, kept)[name][0]) for name, value in mapping.constants.items()
        },
    )


def _classes(mapping: VariantMapping, fitted: Fit, checkpoint: Checkpoint, options: PortOptions) -> tuple[bool, int]:
    """Whether the background is dropped, and the number of classes left. Raises MappingError for another number."""
    network, classes, _ = fitted
    background = mapping.classes.background
    whole = options.keep_background or (network.head is not None and network.head.BACKGROUND_IS_A_CLASS)
    dropped = background is not None and classes == mapping.classes.background_of and not whole
    kept = classes - dropped
    wanted = options.num_classes if options.num_classes is not None else mapping.classes.count
    if wanted is not None and wanted != kept:
        raise MappingError(
            f"{checkpoint.given}: the classifier has {kept} classes{' without background' if dropped else ''}, not "
            f"{wanted}; leave the count out to follow the checkpoint"
        )
    return dropped, kept


def _step(want: Expected, shape: Shape, checkpoint: Checkpoint, drop: int | None, gate_ratio: float) -> Step:
    """How the variable ``want`` becomes an entry of ``shape``; ``gate_ratio`` is folded in if its weights take it."""
    if drop is not None:
        shape = (shape[0] - 1, *shape[1:])
    shifted = want.gate_bias and want.source in checkpoint and checkpoint[want.source].fused == "relu6"
    scale, shift = gate_ratio if want.folds_gate else 1.0, -GATE_SHIFT if shifted else 0.0
    return Step(want.source, want.target, want.axes, want.shape, shape, drop, scale, shift)


def _ranges(mapping: VariantMapping, network: Network, classes: int, checkpoint: Checkpoint) -> dict[str, str]:
    """Module or entry -> the source's name of its quantisation range, if it has one."""
    if not any(name.endswith("/min") for name in checkpoint):
        return {}
    candidates = module_outputs(mapping, network, classes)
    return {at: name for at, names in candidates.items() for name in names[::-1] if f"{name}/min" in checkpoint}


def _left_over(
    mapping: VariantMapping, checkpoint: Checkpoint, expected: list[Expected], ranges: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Variables that no rule uses or ignores; and the ignored ones, with the reason."""
    used = {want.source for want in expected} | {f"{name}/{field}" for name in ranges.values() for field in FIELDS}
    served = _served(checkpoint)
    reasons = {
        name: ignore_reason(mapping, name)
        or _training_state(checkpoint, name, mapping.scope, used)
        or (NOT_SERVED if served and name not in served else None)
        for name in checkpoint
        if name not in used
    }
    if mapping.top == "none":
        reasons = {name: reason or NOT_BACKBONE for name, reason in reasons.items()}
    ignored = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name, reason in reasons.items() if reason is None], dict(checkpoint.set_aside) | ignored


def _served(checkpoint: Checkpoint) -> set[str]:
    """The variables that a SavedModel's graph uses; none for other files, and where some are not found."""
    if checkpoint.saved_model is None or checkpoint.graph is None:
        return set()
    names = {name for one in checkpoint.graph.operations.values() for name in one.weights.values()}
    return names if names <= checkpoint.keys() else set()


def _training_state(checkpoint: Checkpoint, name: str, scope: str, used: Container[str]) -> str | None:
    """Why the variable ``name`` is training state; None if it need not be.

    An optimizer's slot or a replica has the name of a variable before its own, and that variable's shape. Steps, rates
    and loss scales are single numbers outside the network's scope.
    """
    shape, parts = checkpoint[name].shape, name.split("/")
    owners = ("/".join(parts[:count]) for count in range(1, len(parts)))
    if any(owner in used and checkpoint[owner].shape == shape for owner in owners if owner in checkpoint):
        return "training state"
    return "training state" if shape == () and not (scope and name.startswith(f"{scope}/")) else None


def ignore_reason(mapping: VariantMapping, name: str) -> str | None:
    """Why ``mapping`` ignores the variable ``name``; None if it does not."""
    return next((i.reason for i in mapping.ignore if fnmatch.fnmatchcase(name, i.pattern)), None)


def fit(mapping: VariantMapping, checkpoint: Checkpoint) -> Fit:
    """Fit the network of ``mapping`` to the variables of ``checkpoint``.

    If the mapping's top is optional, a checkpoint without classifier has 0 classes, and one without the convolution
    after pooling has no embedding. Otherwise a missing classifier counts as 1 class. Raises MappingError where the
    network would take gigabytes.
    """
    network = build_network(mapping)
    try:
        check_needs(network, mapping.input)
    except ValueError as error:
        raise MappingError(f"{checkpoint.given}: cannot be computed: {error}") from error
    if mapping.top == "none":
        return _fit_backbone(mapping, network, checkpoint)
    each = 1 if network.head is None else network.head.VALUES_PER_CLASS
    bare = replace(network, embedding=0)
    others = {want.target for want in expected_variables(mapping, bare, classes=1)}
    of_embedding = [want for want in expected_variables(mapping, network, classes=1) if want.target not in others]
    if mapping.network.tail and any(_misfit(want, checkpoint) for want in of_embedding):
        network = bare
    if not all(followed_by(checkpoint, want.source, network.embedding_activation) for want in of_embedding):
        network = bare  # another layer of the user's own, of whatever shape
    for want in expected_variables(mapping, network, classes=1):
        if want.target.rpartition(".")[0] == network.class_layers[0] and want.source in checkpoint:
            axis, shape = AXES[want.axes].order[0], checkpoint[want.source].shape
            if len(shape) > axis and shape[axis] >= each:
                classes = shape[axis] // each
                expected = expected_variables(mapping, network, classes)
                if network.head is not None and checkpoint.graph:
                    sources = {want.target: want.source for want in expected}
                    network = replace(network, head=network.head.as_in_graph(checkpoint.graph, sources))
                return Fit(network, classes, expected)
    if mapping.top == "required":
        return Fit(network, 1, expected_variables(mapping, network, classes=1))
    with_embedding, without = (expected_variables(mapping, net, classes=0) for net in (network, bare))
    if any(_misfit(want, checkpoint) is None for want in set(with_embedding) - set(without)):
        return Fit(network, 0, with_embedding)
    return Fit(bare, 0, without)


def followed_by(checkpoint: Checkpoint, weight: str, activation: str) -> bool:
    """Whether the file has ``activation`` behind the layer whose variable is ``weight``, or does not say."""
    graph = checkpoint.graph
    layer = graph.by_weight.get(weight) if graph else None
    return graph is None or layer is None or any(one.kind == activation for one in graph.behind(layer))


def _fit_backbone(mapping: VariantMapping, network: Network, checkpoint: Checkpoint) -> Fit:
    """Stem and blocks, and the last convolution if the network has it in its backbone and the checkpoint holds it."""
    whole = replace(network, embedding=0, backbone=True)
    blocks = replace(whole, last=0)
    with_last, without = (expected_variables(mapping, net, classes=0) for net in (whole, blocks))
    if whole.pools_in_layers and any(want.source in checkpoint for want in set(with_last) - set(without)):
        return Fit(whole, 0, with_last)
    return Fit(blocks, 0, without)


def _misfit(want: Expected, checkpoint: Checkpoint) -> str | None:
    variable = checkpoint.get(want.source)
    if variable is None:
        return f"{want.source}: missing in the checkpoint"
    if variable.shape != want.shape:
        return f"{want.source}: shape {list(variable.shape)}, expected {list(want.shape)}"
    if variable.dtype not in FLOATS:
        return f"{want.source}: dtype {variable.dtype}, expected a float"
    return None


def _target_problems(steps: list[Step], targets: Mapping[str, Shape], given: Container[str]) -> list[str]:
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
    unfilled = [name for name in targets if name not in filled and name not in given and is_weight(name)]
    problems += [f"{name}: no rule fills it" for name in unfilled]
    return problems
