"""The network table with its numbers worked out: channels of every block, scopes and endpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from porter.network.spec import Activation, Architecture, BlockKind, Detection, Segmentation

# What a mapping file may ask for; the largest network of the paper has 1,280 channels, 15 blocks and expansions of 8
MOST, MOST_COUNT, MOST_BLOCKS = 1024, 65_536, 256
MOST_LEVELS = 32  # maps and shapes of boxes; SSDLite has six of each
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

    ``last_conv``, ``last_norm`` and ``last_act`` are modules. ``last`` is 0 where the blocks are all, ``head`` where
    there is no convolution after pooling; ``bn_folded`` networks have biases for batch norms. ``backbone`` tells that
    nothing is pooled: its last endpoint is a map. ``segmentation`` and ``detection`` are heads; with one, the modules
    have torchvision's names.
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
    head: int
    head_activation: Activation
    gate: float
    epsilon: float
    decay: float
    dropout: float
    bn_folded: bool = False
    backbone: bool = False
    segmentation: Segmentation | None = None
    detection: Detection | None = None

    @property
    def inner_map(self) -> str | None:
        """The endpoint whose map a head takes beside the last one; None where there is no such head."""
        if self.segmentation is not None:
            return self.segmentation.low
        return self.detection.first if self.detection is not None else None

    @property
    def inner_channels(self) -> int:
        """Channels of that map."""
        assert self.inner_map is not None
        return self.blocks[int(self.inner_map.removeprefix("layer_").partition("/")[0]) - 2].expanded

    @property
    def boxes(self) -> list[int]:
        """How many boxes a detector tells of each position, map by map."""
        assert self.detection is not None
        ratios = len(self.detection.anchors.ratios) + 1
        return [3] + [ratios] * (len(self.detection.extra) + 1)

    @property
    def stated_gate(self) -> float | None:
        """The gate, where a state dict has to say it: there are gates, and theirs is not 1/6."""
        gated = self.segmentation is not None or any(block.squeezed for block in self.blocks)
        return self.gate if gated and self.gate != TIMM_GATE else None

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        return self.head or self.map_channels

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
    def last_endpoint(self) -> str:
        """That of the last feature map."""
        return self.endpoint_after_blocks(0) if self.last else self.blocks[-1].endpoint

    def endpoint_after_blocks(self, position: int) -> str:
        """``layer_N`` of what follows the blocks: 0 last convolution, 1 pooling, 2 head convolution."""
        return f"layer_{len(self.blocks) + 2 + position}"


def build_network(mapping: Architecture) -> Network:
    """Apply multiplier and expansions. Raises ValueError, ``key: what is wrong``, on an impossible table."""
    table, divisor = mapping.network, mapping.definition.divisor
    definition = mapping.definition
    _check_numbers(mapping)

    def scaled(count: int) -> int:
        return make_divisible(count * table.multiplier, divisor, definition.min_depth)

    blocks: list[Block] = []
    channels = scaled(table.stem.out)
    for index, row in enumerate(table.blocks):
        key = f"network.blocks[{index}]"
        last_stage = blocks[-1].stage if blocks else -1
        if row.stage not in (last_stage, last_stage + 1) or row.stage < 0:
            raise ValueError(f"{key}.stage: stages count up from 0 without gaps, {row.stage} follows {last_stage}")
        if row.kernel % 2 == 0 or row.kernel < 1 or row.stride < 1 or row.out < 1:
            raise ValueError(f"{key}: kernel must be odd, stride and out positive")
        written = str(row.expansion)
        try:
            expansion = Fraction(written) if NUMBER.fullmatch(written) else None
        except ZeroDivisionError:
            expansion = None
        if expansion is None:
            raise ValueError(f"{key}.expansion: {written[:40]!r} is no number or fraction such as 72/16")
        if not 1 <= expansion <= MOST:
            raise ValueError(f"{key}.expansion: {written} is not between 1 and {MOST}")
        expanded = channels if expansion == 1 else make_divisible(float(channels * expansion), divisor)
        position = sum(block.stage == row.stage for block in blocks)
        names = mapping.block
        block = Block(
            scope=(names.first if index == 0 else names.others).format(index=index),
            module=mapping.module.format(stage=row.stage, position=position),
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
    if not blocks:
        raise ValueError("network.blocks: there must be at least one block")
    # timm's names: its MobileNetV3 keeps the last convolution in the blocks, its EfficientNet before the pooling
    last = mapping.module.format(stage=blocks[-1].stage + 1, position=0)
    if table.output_stride is not None:
        blocks = _dilated(blocks, table.stem.stride, table.output_stride)
    has_head = mapping.segmentation is not None or mapping.detection is not None
    _check_heads(mapping, blocks)
    return Network(
        segmentation=mapping.segmentation,
        detection=mapping.detection,
        backbone=has_head,
        channels=mapping.input.channels,
        stem=scaled(table.stem.out),
        stem_kernel=table.stem.kernel,
        stem_stride=table.stem.stride,
        stem_activation=table.stem.activation,
        blocks=tuple(blocks),
        last=0 if table.last is None else table.last.out if table.last.fixed else scaled(table.last.out),
        last_conv=f"{last}.conv" if table.head else "conv_head",
        last_norm=f"{last}.bn1" if table.head else "bn2",
        last_act=f"{last}.act" if table.head else "act2",
        last_activation=table.last.activation if table.last else "relu",
        head=table.head.out if table.head and not has_head else 0,
        head_activation=table.head.activation if table.head else "relu",
        gate=definition.gate,
        epsilon=definition.batch_norm.epsilon,
        decay=definition.batch_norm.decay,
        dropout=definition.dropout,
        bn_folded=mapping.bn_folded,
    )


def _check_heads(mapping: Architecture, blocks: Sequence[Block]) -> None:
    inner = [f"{block.endpoint}/{end}" for block in blocks for end in ("expansion_output", "depthwise_output")]
    head, detection = mapping.segmentation, mapping.detection
    if detection is not None:
        if detection.first not in inner:
            raise ValueError(f"detection.first: {detection.first[:60]!r} is none of {', '.join(inner)}")
        counts, anchors = detection.extra, detection.anchors
        if not all(1 <= count <= MOST_COUNT for count in counts) or len(counts) > MOST_LEVELS:
            raise ValueError(f"detection.extra: at most {MOST_LEVELS} positive numbers of channels")
        if (
            not anchors.ratios
            or len(anchors.ratios) > MOST_LEVELS
            or not all(0 < one <= MOST for one in anchors.ratios)
        ):
            raise ValueError(f"detection.anchors.ratios: at most {MOST_LEVELS} positive numbers")
        if not 0 < anchors.min_scale <= anchors.max_scale <= 1:
            raise ValueError("detection.anchors: min_scale and max_scale lie between 0 and 1")
        if len(detection.coder) != 4 or not all(0 < factor <= MOST for factor in detection.coder):
            raise ValueError("detection.coder: has four positive numbers")
    if head is None:
        return
    if head.low not in inner:
        raise ValueError(f"segmentation.low: {head.low[:60]!r} is none of {', '.join(inner)}")
    for key, sides in (("window", head.window), ("stride", head.stride)):
        if len(sides) != 2 or not all(1 <= side <= MOST_COUNT for side in sides):
            raise ValueError(f"segmentation.{key}: is a height and a width, in positions")
    if not 1 <= head.filters <= MOST_COUNT or not 0 < head.epsilon < 1:
        raise ValueError("segmentation: filters and epsilon are positive, epsilon below 1")


def with_output_stride(network: Network, output_stride: int) -> Network:
    """``network`` with dilations for the strides past ``output_stride``. Raises ValueError where none is reached."""
    return replace(network, blocks=tuple(_dilated(network.blocks, network.stem_stride, output_stride)))


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


def _check_numbers(mapping: Architecture) -> None:
    """Refuse absurd numbers with a message, before they take memory."""
    table, definition, spec = mapping.network, mapping.definition, mapping.input
    if len(table.blocks) > MOST_BLOCKS:
        raise ValueError(f"network.blocks: {len(table.blocks)} blocks; at most {MOST_BLOCKS}")
    counts = {"input.size": spec.size, "input.channels": spec.channels, "definition.divisor": definition.divisor}
    counts |= {"definition.min_depth": definition.min_depth or 1, "network.output_stride": table.output_stride or 1}
    counts |= {"network.stem.out": table.stem.out, "network.last.out": table.last.out if table.last else 1}
    counts |= {"network.stem.kernel": table.stem.kernel, "network.stem.stride": table.stem.stride}
    if table.head:
        counts["network.head.out"] = table.head.out
    for index, row in enumerate(table.blocks):
        at = f"network.blocks[{index}]"
        counts |= {f"{at}.out": row.out, f"{at}.kernel": row.kernel, f"{at}.stride": row.stride}
    for key, count in counts.items():
        if not 1 <= count <= MOST_COUNT:
            raise ValueError(f"{key}: {count} is not between 1 and {MOST_COUNT}")
    numbers = {"network.multiplier": table.multiplier, "definition.gate": definition.gate, "input.crop": spec.crop}
    numbers |= {"definition.batch_norm.epsilon": definition.batch_norm.epsilon}
    for key, number in numbers.items():
        if not 0 < number <= MOST:
            raise ValueError(f"{key}: {number} is not a number above 0 and up to {MOST}")
    if not (0 <= definition.dropout <= 1 and 0 <= definition.batch_norm.decay <= 1):
        raise ValueError("definition: dropout and decay lie between 0 and 1")
    if len(spec.mean) != spec.channels or len(spec.std) != spec.channels:
        raise ValueError(f"input: mean and std have a number for each of the {spec.channels} channels")
    if not all(math.isfinite(x) for x in (*spec.mean, *spec.std)) or 0 in spec.std:
        raise ValueError("input: mean and std are finite, and std is not 0")


def make_divisible(value: float, divisor: int, least: int | None = None) -> int:
    """``_make_divisible`` of slim/nets/mobilenet/mobilenet.py: the nearest multiple, at least 90 % of ``value``.

    And at least ``least``, or ``divisor``.
    """
    rounded = max(least or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
