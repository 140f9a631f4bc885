"""A network table with its numbers worked out: channels of every block, names of modules and endpoints."""

from __future__ import annotations

import functools
import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ParamSpec, TypeVar, get_args

from msgspec import Struct, field
from msgspec.structs import replace as replace_struct

from porter.network.detection import Detection
from porter.network.names import fill
from porter.network.segmentation import Segmentation
from porter.network.spec import (
    MOST,
    Activation,
    BlockKind,
    BlockNames,
    Definition,
    Input,
    Pooling,
    Predictions,
    Table,
    TailLayer,
)

Head = Segmentation | Detection
HEADS: tuple[type[Head], ...] = get_args(Head)
NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?(/[0-9]{1,6})?")

TIMM_GATE = 1 / 6  # of squeeze-excite in timm, whose state dicts say nothing of it
# The entry by which a state dict says another gate. A class that knows no such entry refuses it by this name
GATE_ENTRY = "squeeze_excite_gate_is_not_one_sixth"

# Fused?, expansion 1? -> kind
KINDS: dict[tuple[bool, bool], BlockKind] = {
    (False, False): "inverted_residual",
    (False, True): "separable",
    (True, False): "fused",
    (True, True): "projection",
}


class HeadConstants(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The head of a network, under its key; at most one is there."""

    segmentation: Segmentation | None = None
    detection: Detection | None = None

    @property
    def head(self) -> Head | None:
        """The one that is there."""
        return next((head for kind in HEADS if (head := getattr(self, kind.KEY))), None)


class Architecture(HeadConstants, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """What a network is made of: the part of a mapping file that ``build_network`` takes.

    ``block`` and ``module`` name its blocks in TensorFlow and in the state dict; ``bn_folded`` (``folded`` in the file)
    is true where the source has biases instead of batch norms.
    """

    input: Input
    definition: Definition
    block: BlockNames
    module: str
    network: Table
    bn_folded: bool = field(name="folded", default=False)


@dataclass(frozen=True)
class Block:
    """One block. ``scope`` is TensorFlow's, ``module`` the state dict's, ``endpoint`` e.g. ``layer_2``.

    ``squeezed`` is the width inside squeeze-excite, 0 where there is none; ``dilation`` is of the k x k convolution.
    """

    scope: str
    module: str
    endpoint: str
    stage: int
    kernel: int
    stride: int
    channels_in: int
    expanded: int
    squeezed: int
    out: int
    activation: Activation
    kind: BlockKind
    skip: bool
    dilation: int = 1

    @property
    def expands(self) -> bool:
        """Whether it begins with an expansion."""
        return self.kind in ("inverted_residual", "fused")

    @property
    def project(self) -> str:
        """timm's name for the last convolution."""
        return {"separable": "conv_pw", "projection": "conv"}.get(self.kind, "conv_pwl")

    @property
    def depthwise(self) -> bool:
        """Whether it has a depthwise convolution."""
        return self.kind in ("inverted_residual", "separable")

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.skip and self.stride == 1 and self.channels_in == self.out


@dataclass(frozen=True)
class Network:
    """A variant's network. Channel counts; ``gate`` is the squeeze-excite constant of the definition.

    ``last`` is the convolution after the blocks (0 where there is none; ``last_conv``, ``last_norm`` and ``last_act``
    are its modules), ``embedding`` the one after pooling, timm's ``conv_head``. ``bn_folded`` networks have biases for
    batch norms. A ``backbone`` ends in a map: nothing is pooled. ``head`` is a segmenter's or detector's. ``tail`` is a
    classifier of several layers; ``flat`` (height, width) is the map that is flattened where ``pooling`` is none.
    """

    channels: int
    stem: int
    stem_kernel: int
    stem_stride: int
    stem_activation: Activation
    blocks: tuple[Block, ...]
    last: int
    last_conv: str
    last_norm: str
    last_act: str
    last_activation: Activation
    embedding: int
    embedding_activation: Activation
    gate: float
    epsilon: float
    decay: float
    dropout: float
    bn_folded: bool = False
    backbone: bool = False
    head: Head | None = None
    pooling: Pooling = "average"
    flat: tuple[int, ...] = ()
    tail: tuple[TailLayer, ...] = ()
    predictions: Predictions = "softmax"

    @property
    def stated_gate(self) -> float | None:
        """The gate, where a state dict has to say it: there are gates, and theirs is not 1/6."""
        gated = (self.head is not None and self.head.GATED) or any(block.squeezed for block in self.blocks)
        return self.gate if gated and self.gate != TIMM_GATE else None

    @property
    def kind(self) -> str:
        """``classifier``, ``segmenter`` or ``detector``."""
        return "classifier" if self.head is None else self.head.KIND

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        return self.embedding or self.map_channels * math.prod(self.flat)

    @property
    def map_channels(self) -> int:
        """Channels of the last feature map."""
        return self.last or self.blocks[-1].out

    @property
    def pools_in_layers(self) -> bool:
        """Whether slim counts the pooling among its layers, as it does where a convolution follows."""
        return self.last_conv != "conv_head"

    @property
    def total_stride(self) -> int:
        """Pixels of the image for each position of the last feature map."""
        return math.prod([self.stem_stride, *(block.stride for block in self.blocks)])

    @property
    def class_layers(self) -> list[str]:
        """The layers whose outputs are classes."""
        if self.head is not None:
            return self.head.class_layers
        dense = [number for number, layer in enumerate(self.tail) if layer.kind == "dense"]
        return [self.tail_layer(dense[-1]) if dense else "classifier"]

    def tail_layer(self, number: int) -> str:
        """The module of a layer of the tail."""
        return tail_layer(number, len(self.tail))

    def endpoint_after_blocks(self, position: int) -> str:
        """``layer_N`` of what follows the blocks: 0 last convolution, 1 pooling, 2 the embedding's convolution."""
        return f"layer_{len(self.blocks) + 2 + position}"


Given = ParamSpec("Given")
Made = TypeVar("Made")


def remembered(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """``function`` with its latest results remembered, by arguments that are equal but cannot be hashed.

    One file is asked about repeatedly, and so is the next file of a batch.
    """
    latest: deque[tuple[tuple[Any, ...], Made]] = deque(maxlen=64)

    @functools.wraps(function)
    def remembering(*given: Given.args, **by_name: Given.kwargs) -> Made:
        key = (*given, *by_name.values())
        for arguments, result in list(latest):  # a copy: another thread may append
            if arguments == key:
                return result
        result = function(*given, **by_name)
        latest.append((key, result))
        return result

    return remembering


@remembered
def build_network(mapping: Architecture) -> Network:
    """Apply multiplier and expansions. Raises ValueError, ``key: what is wrong``, on an impossible table."""
    table, definition, divisor = mapping.network, mapping.definition, mapping.definition.divisor
    for name, values in (("mean", mapping.input.mean), ("std", mapping.input.std)):
        if len(values) != mapping.input.channels:
            raise ValueError(f"input.{name}: has {len(values)} numbers for {mapping.input.channels} channels")

    def scaled(count: int) -> int:
        return make_divisible(count * table.multiplier, divisor, definition.min_depth)

    def named(key: str, template: str, **values: int) -> str:
        try:
            return fill(template, values)
        except KeyError as error:
            raise ValueError(f"{key}: unknown placeholder {error}") from error
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    blocks: list[Block] = []
    channels = stem = table.stem.out if table.stem.fixed else scaled(table.stem.out)
    for index, row in enumerate(table.blocks):
        key = f"network.blocks[{index}]"
        last_stage = blocks[-1].stage if blocks else -1
        if row.stage not in (last_stage, last_stage + 1) or row.stage < 0:
            raise ValueError(f"{key}.stage: stages count up from 0 without gaps, {row.stage} follows {last_stage}")
        if row.kernel % 2 == 0:
            raise ValueError(f"{key}.kernel: must be odd, is {row.kernel}")
        if row.fused and row.se:
            raise ValueError(f"{key}.se: a fused block has no squeeze-excite; write se: false")
        written = str(row.expansion)
        try:
            expansion = Fraction(written) if NUMBER.fullmatch(written) else None
        except ZeroDivisionError:
            expansion = None
        if expansion is None:
            raise ValueError(f"{key}.expansion: {written[:40]!r} is no number or fraction such as 72/16")
        if not 1 <= expansion <= MOST:
            raise ValueError(f"{key}.expansion: {written} is not between 1 and {MOST}")
        if row.fused and expansion == 1 and row.stride != 1:
            raise ValueError(f"{key}.stride: a fused block with expansion 1 is a 1x1 projection; write stride: 1")
        expanded = channels if expansion == 1 else make_divisible(float(channels * expansion), divisor)
        position = sum(block.stage == row.stage for block in blocks)
        names = mapping.block
        block = Block(
            scope=named("block", names.first if index == 0 else names.others, index=index),
            module=named("module", mapping.module, stage=row.stage, position=position),
            endpoint=f"layer_{index + 2}",
            stage=row.stage,
            kernel=row.kernel,
            stride=row.stride,
            channels_in=channels,
            expanded=expanded,
            squeezed=make_divisible(expanded / 4, divisor) if row.se else 0,  # squeeze_factor=4
            out=scaled(row.out),
            activation=row.activation,
            kind=KINDS[row.fused, expansion == 1],
            skip=row.skip,
        )
        blocks.append(block)
        channels = block.out
    # timm's names: its MobileNetV3 keeps the last convolution in the blocks, its EfficientNet before the pooling
    last = named("module", mapping.module, stage=blocks[-1].stage + 1, position=0)
    if table.output_stride is not None:
        blocks = _dilated(blocks, table.stem.stride, table.output_stride)
    head = mapping.head
    _check_head(mapping, blocks)
    _check_tail(table)
    if table.head and not table.last:
        raise ValueError("network.last: is missing, and network.head takes what it gives; write head: null as well")
    return Network(
        head=head,
        backbone=head is not None,
        channels=mapping.input.channels,
        stem=stem,
        stem_kernel=table.stem.kernel,
        stem_stride=table.stem.stride,
        stem_activation=table.stem.activation,
        blocks=tuple(blocks),
        last=0 if table.last is None else table.last.out if table.last.fixed else scaled(table.last.out),
        last_conv=f"{last}.conv" if table.head else "conv_head",
        last_norm=f"{last}.bn1" if table.head else "bn2",
        last_act=f"{last}.act" if table.head else "act2",
        last_activation=table.last.activation if table.last else "relu",
        embedding=table.head.out if table.head and head is None and table.pooling != "none" else 0,
        embedding_activation=table.head.activation if table.head else "relu",
        gate=definition.gate,
        epsilon=definition.batch_norm.epsilon,
        decay=definition.batch_norm.decay,
        dropout=definition.dropout,
        bn_folded=mapping.bn_folded,
        pooling=table.pooling,
        flat=tuple(table.flat or ()),
        tail=tuple(table.tail),
        predictions=table.predictions,
    )


def _check_head(mapping: Architecture, blocks: Iterable[Block]) -> None:
    """Raise ValueError where the head cannot be built on ``blocks``."""
    keys = [kind.KEY for kind in HEADS if getattr(mapping, kind.KEY)]
    if len(keys) > 1:
        raise ValueError(f"{keys[1]}: a network has one head; it has {keys[0]} as well")
    head = mapping.head
    if head is None:
        return
    head.check()
    inner = []
    for block in blocks:
        inner += [f"{block.endpoint}/expansion_output"] if block.expands else []
        inner += [f"{block.endpoint}/depthwise_output"] if block.depthwise else []
    key, endpoint = head.inner
    if endpoint not in inner:
        raise ValueError(f"{key}: {endpoint[:60]!r} is none of {', '.join(inner)}")


def _check_tail(table: Table) -> None:
    """Raise ValueError where the layers behind the pooling contradict each other."""
    if (table.pooling == "none") != (table.flat is not None):
        raise ValueError("network.flat: is for `pooling: none`, which needs it")
    dense = [number for number, layer in enumerate(table.tail) if layer.kind == "dense"]
    for number, layer in enumerate(table.tail):
        key = f"network.tail[{number}]"
        if (layer.activation == "leaky_relu") != (layer.slope is not None):
            raise ValueError(f"{key}.slope: is for leaky_relu, which needs it")
        if layer.decay is not None and layer.kind != "batch_norm":
            raise ValueError(f"{key}.decay: is not wanted; it is a {layer.kind}")
        has = {"out": layer.out, "epsilon": layer.epsilon, "activation": layer.activation}
        last = number == dense[-1] if dense else False
        needed = {"dense": "" if last else "out", "batch_norm": "epsilon", "activation": "activation"}[layer.kind]
        for part, value in has.items():
            if (part == needed) != (value is not None):
                what = "the last dense layer has as many as there are classes" if last else f"it is a {layer.kind}"
                raise ValueError(f"{key}.{part}: {'is missing' if value is None else 'is not wanted'}; {what}")
    if table.tail and not dense:
        raise ValueError("network.tail: has no dense layer, whose outputs are the classes")


def tail_layer(number: int, count: int) -> str:
    """The module of a layer of a tail of ``count``: timm's ``classifier``, or one of several below it."""
    return "classifier" if count == 1 else f"classifier.{number}"


def with_output_stride(mapping: Architecture, output_stride: int | None) -> Network:
    """The network of ``mapping`` with another output stride than its table has; None: without dilations.

    Raises ValueError where ``output_stride`` is none of its strides.
    """
    return build_network(replace_struct(mapping, network=replace_struct(mapping.network, output_stride=output_stride)))


def _dilated(blocks: Iterable[Block], stride: int, output_stride: int) -> list[Block]:
    """``blocks`` behind a stem of ``stride``; mobilenet_base of slim/nets/mobilenet/mobilenet.py.

    Once the output stride is reached, a block's stride becomes 1 and multiplies the dilation of the blocks after it.
    """
    found, rate = [], 1
    for block in blocks:
        if stride == output_stride:
            found.append(replace(block, stride=1, dilation=rate))
            rate *= block.stride
        else:
            found.append(block)
            stride *= block.stride
    if stride != output_stride:
        raise ValueError(f"network.output_stride: {output_stride} is none of the strides that the network reaches")
    return found


def make_divisible(value: float, divisor: int, least: int | None = None) -> int:
    """``_make_divisible`` of slim/nets/mobilenet/mobilenet.py: the nearest multiple, at least 90 % of ``value``.

    And at least ``least``, or ``divisor``.
    """
    rounded = max(least or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
