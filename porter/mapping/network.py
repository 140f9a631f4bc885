"""The network table with its numbers worked out: channels of every block, scopes and endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from porter.mapping.schema import Activation, VariantMapping


@dataclass(frozen=True)
class Block:
    """One block. ``scope`` is TensorFlow's, ``module`` the state dict's, ``endpoint`` e.g. ``layer_2``.

    ``squeezed`` is the width inside squeeze-excite, 0 where there is none.
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
    separable: bool

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.channels_in == self.out


@dataclass(frozen=True)
class Network:
    """A variant's network. Channel counts; ``gate`` is the squeeze-excite constant of the definition."""

    channels: int
    stem: int
    stem_kernel: int
    stem_stride: int
    stem_activation: Activation
    blocks: tuple[Block, ...]
    last: int
    last_module: str
    last_activation: Activation
    head: int
    head_activation: Activation
    gate: float
    epsilon: float
    decay: float
    dropout: float

    def endpoint_after_blocks(self, position: int) -> str:
        """``layer_N`` of what follows the blocks: 0 last convolution, 1 pooling, 2 head convolution."""
        return f"layer_{len(self.blocks) + 2 + position}"


def build_network(mapping: VariantMapping) -> Network:
    """Apply multiplier and expansions. Raises ValueError, ``key: what is wrong``, on an impossible table."""
    table, divisor = mapping.network, mapping.definition.divisor
    definition = mapping.definition

    def scaled(count: int) -> int:
        return make_divisible(count * table.multiplier, divisor)

    blocks: list[Block] = []
    channels = scaled(table.stem.out)
    for index, row in enumerate(table.blocks):
        key = f"network.blocks[{index}]"
        last_stage = blocks[-1].stage if blocks else -1
        if row.stage not in (last_stage, last_stage + 1) or row.stage < 0:
            raise ValueError(f"{key}.stage: stages count up from 0 without gaps, {row.stage} follows {last_stage}")
        if row.kernel % 2 == 0 or row.kernel < 1 or row.stride < 1 or row.out < 1:
            raise ValueError(f"{key}: kernel must be odd, stride and out positive")
        try:
            expansion = Fraction(str(row.expansion))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{key}.expansion: {row.expansion!r} is no number or fraction such as 72/16") from None
        if expansion < 1:
            raise ValueError(f"{key}.expansion: {row.expansion} is below 1")
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
            separable=expansion == 1,
        )
        blocks.append(block)
        channels = block.out
    if not blocks:
        raise ValueError("network.blocks: there must be at least one block")
    return Network(
        channels=mapping.input.channels,
        stem=scaled(table.stem.out),
        stem_kernel=table.stem.kernel,
        stem_stride=table.stem.stride,
        stem_activation=table.stem.activation,
        blocks=tuple(blocks),
        last=scaled(table.last.out),
        last_module=mapping.module.format(stage=blocks[-1].stage + 1, position=0),
        last_activation=table.last.activation,
        head=table.head.out,
        head_activation=table.head.activation,
        gate=definition.gate,
        epsilon=definition.batch_norm.epsilon,
        decay=definition.batch_norm.decay,
        dropout=definition.dropout,
    )


def make_divisible(value: float, divisor: int) -> int:
    """``_make_divisible`` of slim/nets/mobilenet/mobilenet.py: the nearest multiple, at least 90 % of ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
