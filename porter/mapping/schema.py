"""What a mapping file may say, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Activation = Literal["relu", "hard_swish"]
BlockKind = Literal["separable", "inverted_residual", "fused", "projection"]
Layout = Literal["conv", "depthwise", "dense", "conv_ohwi", "depthwise_1hwc", "dense_ohwi", "vector", "batch_norm"]


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
    """One variable (or batch norm) -> one state-dict entry (or module).

    ``gate_shift`` marks the bias to which a converter may have added the 3 of the gate's relu6(x + 3).
    """

    source: str = field(name="from")
    target: str = field(name="to")
    layout: Layout
    shape: list[int | str]
    absorbs_gate: bool = False
    gate_shift: bool = False


BlockRule = Rule | Literal["squeeze_excite"]


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """Rules in the order of computation; the middle sections are for blocks of that kind.

    The word ``squeeze_excite`` among a block's rules stands for the rules of that section.
    """

    stem: list[Rule]
    separable: list[BlockRule]
    inverted_residual: list[BlockRule]
    fused: list[BlockRule]
    projection: list[BlockRule]
    squeeze_excite: list[Rule]
    last: list[Rule]
    head: list[Rule]
    classifier: list[Rule]


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
    """One row of the paper's table, before the multiplier.

    ``fused`` blocks expand with the k x k convolution; without ``skip`` the input is not added to the output.
    """

    stage: int
    kernel: int
    expansion: int | float | str
    out: int
    se: bool
    activation: Activation
    stride: int
    fused: bool = False
    skip: bool = True


class Pointwise(Struct, frozen=True, forbid_unknown_fields=True):
    """A 1x1 convolution; the multiplier spares a ``fixed`` one."""

    out: int
    activation: Activation
    fixed: bool = False


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The network table of a variant."""

    multiplier: float
    stem: Stem
    blocks: list[BlockRow]
    last: Pointwise
    head: Pointwise | None


class Keras(Struct, frozen=True, forbid_unknown_fields=True):
    """The function of keras.applications that builds the network, and its arguments."""

    model: str
    alpha: float
    minimalistic: bool


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """How the released weights were trained, for model cards: RMSProp on ImageNet, up to ``step``."""

    lr: float
    dropout: float
    weight_decay: float
    momentum: float
    batch_size: int
    rmsprop_decay: float
    resources: str
    step: int | None = None


class VariantMapping(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole mapping file with its bases merged in.

    ``names`` renames the ``from`` of rules, ``variables`` single
    variables (by full name, wherever they lie); ``outputs`` tells, by section, what the source calls modules' outputs;
    ``folded`` tells that batch norm is folded into the source's weights.
    """

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
    top: Literal["required", "optional"] = "required"
    folded: bool = False
    names: dict[str, str] = {}
    outputs: dict[str, dict[str, list[str]]] = {}
    variables: dict[str, str] = {}
    timm: str | None = None
    keras: Keras | None = None
    url: str | None = None
    training: Training | None = None
