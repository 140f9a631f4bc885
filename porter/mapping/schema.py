"""What a mapping file may say, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Activation = Literal["relu", "hard_swish"]
Layout = Literal["conv", "depthwise", "dense", "vector", "batch_norm"]


class Classes(Struct, frozen=True, forbid_unknown_fields=True):
    """Outputs of the classifier: ``background`` is dropped where there are ``background_of`` of them."""

    count: int | None = None
    background: int | None = None
    background_of: int | None = None


class Input(Struct, frozen=True, forbid_unknown_fields=True):
    """The image the network was trained on; ``mean`` and ``std`` refer to pixels / 255."""

    size: int
    channels: int
    mean: list[float]
    std: list[float]
    crop: float


class BatchNorm(Struct, frozen=True, forbid_unknown_fields=True):
    """``decay`` is TensorFlow's: PyTorch's momentum is 1 - decay."""

    epsilon: float
    decay: float


class Definition(Struct, frozen=True, forbid_unknown_fields=True):
    """Constants of the network that are neither weights nor in the table."""

    batch_norm: BatchNorm
    gate: float
    dropout: float
    divisor: int


class BlockNames(Struct, frozen=True, forbid_unknown_fields=True):
    """Scope of the first block, and of the others (``{index}`` counts from 0)."""

    first: str
    others: str


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One variable (or batch norm) -> one state-dict entry (or module)."""

    source: str = field(name="from")
    target: str = field(name="to")
    layout: Layout
    shape: list[int | str]
    absorbs_gate: bool = False


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """Rules for the whole network, and for each kind of block."""

    network: list[Rule]
    separable: list[Rule]
    inverted_residual: list[Rule]
    squeeze_excite: list[Rule]


class Ignored(Struct, frozen=True, forbid_unknown_fields=True):
    """Variables that no rule needs: a shell pattern, and why."""

    pattern: str
    reason: str


class Stem(Struct, frozen=True, forbid_unknown_fields=True):
    """The first convolution."""

    kernel: int
    stride: int
    out: int
    activation: Activation


class BlockRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the paper's table, before the multiplier."""

    stage: int
    kernel: int
    expansion: int | float | str
    out: int
    se: bool
    activation: Activation
    stride: int


class Pointwise(Struct, frozen=True, forbid_unknown_fields=True):
    """A 1x1 convolution."""

    out: int
    activation: Activation


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The network table of a variant."""

    multiplier: float
    stem: Stem
    blocks: list[BlockRow]
    last: Pointwise
    head: Pointwise


class VariantMapping(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole mapping file with its bases merged in."""

    variant: str
    scope: str
    classes: Classes
    input: Input
    definition: Definition
    batch_norm: dict[str, str]
    block: BlockNames
    module: str
    rules: Rules
    ignore: list[Ignored]
    network: Table
    timm: str | None = None
    url: str | None = None
