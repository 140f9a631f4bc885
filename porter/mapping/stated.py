"""What a file states of its own function: taken where the network can have it, refused with the numbers where not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace as replace_struct

from porter.errors import NotTheNetworkError
from porter.mapping.classifier_in_graph import with_classifier
from porter.mapping.files import list_variants, load_variant
from porter.mapping.gate import GATE_ROUNDING
from porter.mapping.head_in_graph import head_problem
from porter.mapping.plan import ignore_reason
from porter.mapping.rules import expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.network import TIMM_GATE, Network, build_network, with_output_stride
from porter.network.node import Node, map_sizes, same_padding
from porter.network.nodes import nodes
from porter.network.spec import Input, Pooling, Predictions, Stem, TailLayer
from porter.sources import Checkpoint
from porter.sources.stored_graph import (
    ACTIVATIONS,
    FLOAT32,
    ROUNDING,
    Sides,
    StoredGraph,
    StoredOperation,
)

# A network takes numbers of about -1 to 1. A factor above this one, half-way between 1 / 255 and 1, is of values from 0
# to 1, one below it of pixels from 0 to 255
PIXEL_FACTOR = 1 / 16
STRICT = ("keras", "tflite", "tfjs")  # formats of a network alone; a TensorFlow graph may begin with a reader of files
SCALES = ("add", "subtract", "multiply", "divide")
LAYS_OUT = ("pad", "Pad", "resize", "flatten")  # Pad: by edges that the graph computes
IMAGES_OF_A_LOOP = "TensorListStack"  # what tf.map_fn makes of images that it reads one by one
ON_PIXELS = (*SCALES, *LAYS_OUT, *ROUNDING)
FACTS = ("scaling", "gate", "epsilon", "strides")


class Stated(Struct, frozen=True, omit_defaults=True):
    """What a file states otherwise than its variant's mapping; None where they agree."""

    multiplier: float | None = None
    stem: Stem | None = None
    last: int | None = None  # channels
    embedding: int | None = None
    input: Input | None = None
    epsilon: float | None = None
    decay: float | None = None
    output_stride: int | None = None
    pooling: Pooling | None = None
    flat: list[int] | None = None
    tail: list[TailLayer] | None = None
    predictions: Predictions | None = None

    def applied(self, mapping: VariantMapping) -> VariantMapping:
        """``mapping`` of the variant with these facts in it."""
        norm, table = mapping.definition.batch_norm, mapping.network
        return replace_struct(
            mapping,
            input=self.input or mapping.input,
            definition=replace_struct(
                mapping.definition,
                batch_norm=replace_struct(
                    norm,
                    epsilon=self.epsilon or norm.epsilon,
                    decay=norm.decay if self.decay is None else self.decay,
                ),
            ),
            network=replace_struct(
                table,
                multiplier=self.multiplier or table.multiplier,
                stem=self.stem or table.stem,
                last=replace_struct(table.last, out=self.last, fixed=True) if table.last and self.last else table.last,
                head=replace_struct(table.head, out=self.embedding) if table.head and self.embedding else table.head,
                output_stride=self.output_stride or table.output_stride,
                pooling=self.pooling or table.pooling,
                flat=self.flat if self.pooling or self.flat else table.flat,
                tail=table.tail if self.tail is None else self.tail,
                predictions=self.predictions or table.predictions,
            ),
        )


def difference(mapping: VariantMapping, own: VariantMapping) -> Stated:
    """What ``mapping`` has otherwise than ``own``, that of its variant."""
    found, known = _facts(mapping), _facts(own)
    return Stated(**{name: value for name, value in found.items() if value != known[name]})


def _facts(mapping: VariantMapping) -> dict[str, Any]:
    """The fields of Stated as ``mapping`` has them."""
    norm, table = mapping.definition.batch_norm, mapping.network
    return {
        "multiplier": table.multiplier,
        "stem": table.stem,
        "last": table.last and table.last.out,
        "embedding": table.head and table.head.out,
        "input": mapping.input,
        "epsilon": norm.epsilon,
        "decay": norm.decay,
        "output_stride": table.output_stride,
        "pooling": table.pooling,
        "flat": table.flat,
        "tail": table.tail,
        "predictions": table.predictions,
    }


class Function(NamedTuple):
    """``mapping`` as the file states it, with its names for a tail's variables; and the facts that the file leaves open
    (of FACTS), so that the mapping's were taken. ``white`` is the file's number for a white pixel, 255 or 1; None where
    it takes what the network takes.
    """

    mapping: VariantMapping
    assumed: tuple[str, ...]
    white: float | None = None


class _Layer(NamedTuple):
    """A node with weights, the operation of the file that uses them, and what follows it there."""

    node: Node
    operation: StoredOperation
    behind: list[StoredOperation]

    @property
    def end(self) -> str:
        """The value that the next layer gets."""
        return (self.behind or [self.operation])[-1].name


def as_stated(mapping: VariantMapping, checkpoint: Checkpoint) -> Function:
    """Compare what ``checkpoint`` states with ``mapping``, and change the mapping to it.

    A checkpoint whose variables do not fit is left as it is: the plan says why. Raises NotTheNetworkError that lists
    what the network cannot have.
    """
    graph = checkpoint.graph
    layers = [] if graph is None else _layers(mapping, graph)
    if graph is not None and not layers and (hub := graph.operations.get(mapping.scope.partition("/")[0])):
        return _of_hub(mapping, graph, hub, checkpoint)
    if graph is None or not layers:
        return Function(mapping, FACTS)
    if graph.in_training and (checkpoint.saved_model or checkpoint.format != "bundle"):  # a .meta is for training on
        raise NotTheNetworkError(
            f"{checkpoint.given}: its batch norms use the statistics of each batch, as in training; convert the "
            "model's .keras, .h5 or checkpoint instead"
        )
    network, problems = build_network(mapping), list[str]()
    output_stride = _output_stride(mapping, layers, problems)
    image, white = _input(mapping.input, graph, layers[0].operation, checkpoint, problems)
    sides = _image_sides(graph, layers[0].operation)
    if network.kind == "segmenter" and sides:
        trunk = {layer.end: layer.node.name for layer in layers}
        sources = {want.target: want.source for want in expected_variables(mapping, network, classes=1)}
        problem = head_problem(network, graph, trunk, sources, sides)
        problems += [problem] if problem else []
    problems += _paddings(network, sides or mapping.input.sides, graph, layers)
    problems += _activations(graph, layers)
    gate, epsilon, decay = _constants(network, graph, layers, problems)
    if len(problems) == 1:
        raise NotTheNetworkError(f"{checkpoint.given}: is not the network of {mapping.variant}: {problems[0]}")
    if problems:
        raise NotTheNetworkError(
            f"{checkpoint.given}: its own network is not that of {mapping.variant} ({len(problems)} differences):",
            problems,
        )
    assumed = ["scaling"] if white is None else []
    assumed += ["gate"] if gate is None and any(block.squeezed for block in network.blocks) else []
    assumed += ["epsilon"] if epsilon is None and not mapping.bn_folded else []
    mapping = Stated(input=image, epsilon=epsilon, decay=decay, output_stride=output_stride).applied(mapping)
    if gate is not None:
        mapping = replace_struct(mapping, definition=replace_struct(mapping.definition, gate=gate))
    if mapping.head is None and mapping.top != "none" and not mapping.network.tail:
        try:
            mapping = with_classifier(mapping, checkpoint, graph, layers[-1].end, sides)
        except NotTheNetworkError:
            used = {want.source for want in expected_variables(mapping, network, classes=0)}
            others = [name for name in checkpoint if name not in used]
            if not others or any(ignore_reason(mapping, name) is None for name in others):
                raise  # else the mapping itself leaves out what is behind the trunk
    return Function(mapping, tuple(assumed), white)


def _of_hub(mapping: VariantMapping, graph: StoredGraph, hub: StoredOperation, checkpoint: Checkpoint) -> Function:
    """What a model states whose network is one layer: TensorFlow Hub's, of pooled features, for values from 0 to 1."""
    problems: list[str] = []
    image, white = _input(mapping.input, graph, hub, checkpoint, problems)
    if white is not None and (set(image.mean), set(image.std)) != ({0.0}, {1.0}):
        problems.append(f"{hub.name}: takes values from 0 to 1, and gets pixels minus {image.mean} over {image.std}")
    if problems:
        raise NotTheNetworkError(f"{checkpoint.given}: is not the network of {mapping.variant}: {problems[0]}")
    return Function(with_classifier(mapping, checkpoint, graph, hub.name, None, pooled=True), FACTS, white)


def _layers(mapping: VariantMapping, graph: StoredGraph) -> list[_Layer]:
    """The trunk's layers in the file; empty where some are not there."""
    network = replace(build_network(mapping), backbone=True)
    sources = {want.target: want.source for want in expected_variables(mapping, network, classes=0)}
    found = []
    for node in nodes(network, classes=0):
        if node.layer:
            operation = graph.by_weight.get(sources.get(f"{node.layer}.weight", ""))
            if operation is None and node.layer == network.last_conv and mapping.top == "none":
                break  # of a backbone that ends before it
            if operation is None:
                return []
            found.append(_Layer(node, operation, graph.behind(operation)))
    return found


def _output_stride(mapping: VariantMapping, layers: Sequence[_Layer], problems: list[str]) -> int | None:
    """The output stride that gives the file's strides and dilations; None where the network's own does."""
    network = build_network(mapping)
    stored = [(layer.operation.stride, layer.operation.dilation) for layer in layers]

    def of(candidate: Network) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        every = nodes(replace(candidate, backbone=True), classes=0)
        found = [((node.stride,) * 2, (node.dilation,) * 2) for node in every if node.layer]
        return found[: len(layers)]

    if stored == of(network):
        return None
    stride, reached = network.stem_stride, {network.stem_stride}
    for block in with_output_stride(mapping, None).blocks:
        stride *= block.stride
        reached.add(stride)
    for output_stride in sorted(reached):
        if stored == of(with_output_stride(mapping, output_stride)):
            return output_stride
    for layer, (ours, dilation) in zip(layers, of(network), strict=True):
        operation = layer.operation
        if operation.stride != ours:
            problems.append(f"{operation.name}: stride {_by(operation.stride)}, the network has {_by(ours)}")
        if operation.dilation != dilation:
            problems.append(f"{operation.name}: dilation {_by(operation.dilation)}, the network has {_by(dilation)}")
    return None


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _paddings(network: Network, size: Sides, graph: StoredGraph, layers: Sequence[_Layer]) -> Iterator[str]:
    """What differs from SAME padding for images of ``size``."""
    sizes = map_sizes(nodes(replace(network, backbone=True), classes=0), *size)
    for node, operation, _ in layers:
        before = graph.operations.get(operation.inputs[0]) if operation.inputs else None
        if node.operation != "convolution" or node.shape[2:] == (1, 1) or operation.padding == "same":
            continue
        given = sizes[node.inputs[0]]
        same = tuple(same_padding(side, node.shape[2], node.stride, node.dilation) for side in given)
        own = operation.padding if isinstance(operation.padding, tuple) else ((0, 0), (0, 0))
        if before is not None and before.kind == "pad" and isinstance(before.padding, tuple):
            own = before.padding
        if own != same:
            found, ours = (" and ".join(f"{low}, {high}" for low, high in dict.fromkeys(pads)) for pads in (own, same))
            yield f"{operation.name}: pads by {found}, SAME padding of the network is {ours}"


def _activations(graph: StoredGraph, layers: Sequence[_Layer]) -> Iterator[str]:
    for node, operation, behind in layers:
        last = next((one for one in behind if one.kind in ACTIVATIONS), None)
        wanted = "hard_sigmoid" if node.activation == "gate" else node.activation
        found = last.kind if last else None
        if found != wanted:
            users = ", ".join(
                f"{user.kind} ({user.name})" for user in graph.users.get((behind or [operation])[-1].name, [])
            )
            what = found or f"no activation but {users or 'nothing'}"
            yield f"{operation.name}: is followed by {what}, the network has {wanted or 'none'}"


def _constants(
    network: Network, graph: StoredGraph, layers: Sequence[_Layer], problems: list[str]
) -> tuple[float | None, float | None, float | None]:
    """Squeeze-excite's gate, and epsilon and decay of batch norms; None where the file does not say."""
    behind = [one for layer in layers for one in layer.behind]
    swish = _one("hard swish", {one.slope for one in behind if one.kind == "hard_swish"}, [TIMM_GATE], problems)
    if swish not in (None, TIMM_GATE):
        problems.append(f"hard swish: multiplies relu6(x + 3) by {swish:.9g}, the network by 1/6")
    norms = [one for one in behind if one.kind == "batch_norm"]
    epsilon = _one("batch norm epsilon", {one.epsilon for one in norms if one.epsilon}, [network.epsilon], problems)
    # Of use in training alone, so several are no reason to refuse the file
    decay = next((one.decay for one in norms if one.decay not in (None, network.decay)), None)
    operations = graph.operations.values() if network.head else behind
    slopes = {one.slope for one in operations if one.kind == "hard_sigmoid"}
    slims = load_variant(list_variants()[0]).definition.gate
    return _one("squeeze-excite gate", slopes, [network.gate, TIMM_GATE, slims], problems), epsilon, decay


def _one(what: str, found: set[float], known: Sequence[float], problems: list[str]) -> float | None:
    """The only number of ``found``, as a ``known`` one that it was rounded from; None where there is none."""
    near = {next((one for one in known if math.isclose(one, value, rel_tol=FLOAT32)), value) for value in found}
    near = {next((one for one in known if abs(one - value) < GATE_ROUNDING), value) for value in near}
    if len(near) > 1:
        problems.append(f"{what}: {', '.join(f'{value:.9g}' for value in sorted(near))}; the network has one for all")
    return near.pop() if len(near) == 1 else None


def _input(
    own: Input, graph: StoredGraph, stem: StoredOperation, checkpoint: Checkpoint, problems: list[str]
) -> tuple[Input, float | None]:
    """The image that the file takes, and its number for a white pixel; None where it states no scaling."""
    first, *others = graph.path(stem) or [stem]
    if first.kind != "image":
        if checkpoint.format in STRICT:
            problems.append(f"{first.name} ({first.kind}): the first convolution does not get one image")
            return own, None
        others = [one for one in others if one.kind != IMAGES_OF_A_LOOP]  # a reader of files gives the image
        if any(one.kind not in ON_PIXELS for one in others):
            return own, None
    sides = _image_sides(graph, stem)
    if sides:
        own = replace_struct(own, size=sides[0], width=None if sides[0] == sides[1] else sides[1])
    factor, offset = [1.0] * own.channels, [0.0] * own.channels
    for operation in others:
        if operation.kind in (*ROUNDING, *LAYS_OUT):
            continue
        numbers = list(operation.constant) * (own.channels if len(operation.constant) == 1 else 1)
        if len(numbers) != own.channels or operation.kind not in SCALES:
            problems.append(f"{operation.name}: {operation.kind} before the first convolution cannot be taken over")
            return own, None
        for channel, number in enumerate(numbers):
            at = factor[channel], offset[channel]
            factor[channel], offset[channel] = _scaled(operation, number, *at)
    takes_pixels = graph.takes_pixels and first.kind == "image"
    if not takes_pixels and factor == [1.0] * own.channels and offset == [0.0] * own.channels:
        return own, None
    if not all(0 < abs(one) < math.inf for one in factor) or min(factor) <= 0:
        problems.append(
            f"pixels are multiplied by {', '.join(f'{one:.6g}' for one in factor)}; the port's std are above 0"
        )
        return own, None
    unit = 255.0 if takes_pixels or max(factor) < PIXEL_FACTOR else 1.0
    mean = [-shift / (scale * unit) + 0.0 for scale, shift in zip(factor, offset, strict=True)]
    std = [1 / (scale * unit) for scale in factor]
    close = all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(mean + std, own.mean + own.std, strict=True)
    )
    found = own if close else replace_struct(own, mean=mean, std=std)
    return replace_struct(found, levels=[list(row) for row in graph.levels] or None), unit


def _image_sides(graph: StoredGraph, stem: StoredOperation) -> Sides | None:
    """Height and width of the image, or of what it is resized to; None where they are free."""
    found = [one.window for one in graph.path(stem) if one.kind in ("image", "resize")]
    return found[-1] if found and all(found[-1]) else None


def _scaled(operation: StoredOperation, number: float, factor: float, offset: float) -> tuple[float, float]:
    """``factor`` and ``offset`` of x behind ``operation`` with ``number``. NaN where it is no scaling."""
    if operation.kind == "add":
        return factor, offset + number
    if operation.kind == "subtract":
        return (-factor, number - offset) if operation.constant_first else (factor, offset - number)
    if operation.kind == "multiply":
        return factor * number, offset * number
    return (math.nan, math.nan) if operation.constant_first or not number else (factor / number, offset / number)
