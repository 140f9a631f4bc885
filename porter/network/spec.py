"""The part of a mapping file that describes the network, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

# What a mapping file may ask for; the largest network of the paper has 1,280 channels, 15 blocks and expansions of 8
MOST, MOST_COUNT, MOST_BLOCKS = 1024, 65_536, 256
Count = Annotated[int, Meta(ge=1, le=MOST_COUNT)]
Kernel = Annotated[int, Meta(ge=1, le=31)]  # a side; the paper's have 3 and 5
Positive = Annotated[float, Meta(gt=0, le=MOST)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sides = Annotated[list[Count], Meta(min_length=2, max_length=2)]  # height and width

Activation = Literal["relu", "hard_swish", "relu6"]
TailActivation = Literal[Activation, "tanh", "sigmoid", "silu", "elu", "selu", "gelu", "leaky_relu"]
Pooling = Literal["average", "max", "none"]
Predictions = Literal["softmax", "sigmoid"]


class ActivationForms(NamedTuple):
    """An activation in every form of a network.

    ``torch`` is the class of ``torch.nn`` and ``function`` that of ``torch.nn.functional``. ``onnx`` is the operator of
    ONNX, and ``limits`` are constants that it takes. ``tflite`` is the operator of TensorFlow Lite, which computes it
    ``in_convolution`` where it can. ``card`` is timm's word for it. The tf.nn reference has its own arithmetic, for it
    is evidence.
    """

    torch: str
    function: str
    onnx: str
    tflite: str
    card: str
    limits: tuple[float, ...] = ()
    in_convolution: bool = True


ACTIVATIONS: dict[TailActivation, ActivationForms] = {
    "relu": ActivationForms("ReLU", "relu", "Relu", "relu", "ReLU"),
    "relu6": ActivationForms("ReLU6", "relu6", "Clip", "relu6", "ReLU6", limits=(0.0, 6.0)),
    # x * relu6(x + 3) / 6: slim's h-swish has 1/6, unlike its squeeze-excite gate
    "hard_swish": ActivationForms(
        "Hardswish", "hardswish", "HardSwish", "hard_swish", "Hard Swish", in_convolution=False
    ),
}
# What heads that people put behind the network have besides. ONNX and TensorFlow Lite write silu as x * sigmoid(x); the
# ONNX of these exports writes gelu by the error function, and TensorFlow Lite writes selu by elu
TAIL_ACTIVATIONS: dict[TailActivation, ActivationForms] = {
    **ACTIVATIONS,
    "tanh": ActivationForms("Tanh", "tanh", "Tanh", "tanh", "Tanh", in_convolution=False),
    "sigmoid": ActivationForms("Sigmoid", "sigmoid", "Sigmoid", "logistic", "Sigmoid", in_convolution=False),
    "silu": ActivationForms("SiLU", "silu", "Sigmoid", "logistic", "SiLU", in_convolution=False),
    "elu": ActivationForms("ELU", "elu", "Elu", "elu", "ELU", in_convolution=False),
    "selu": ActivationForms("SELU", "selu", "Selu", "elu", "SELU", in_convolution=False),
    "gelu": ActivationForms("GELU", "gelu", "Erf", "gelu", "GELU", in_convolution=False),
    "leaky_relu": ActivationForms(
        "LeakyReLU", "leaky_relu", "LeakyRelu", "leaky_relu", "LeakyReLU", in_convolution=False
    ),
}
BlockKind = Literal["separable", "inverted_residual", "fused", "projection"]


class Input(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The image the network was trained on; ``mean`` and ``std`` refer to pixels / 255, a number for each channel.

    ``size`` is the height, and the width where there is no ``width``.
    ``levels`` are a quantised network's own numbers for each of 256 pixel values, one row for all channels or one for
    each, where it computes them in integers.
    """

    size: Count
    channels: Count
    mean: list[Annotated[float, Meta(ge=-MOST, le=MOST)]]
    std: list[Positive]
    crop: Positive
    levels: list[list[float]] | None = None
    width: Count | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.size, self.width or self.size


class BatchNorm(Struct, frozen=True, forbid_unknown_fields=True):
    """``decay`` is TensorFlow's: PyTorch's momentum is 1 - decay."""

    epsilon: Positive
    decay: Share


class Definition(Struct, frozen=True, forbid_unknown_fields=True):
    """Constants of the network that are neither weights nor in the table.

    ``min_depth`` is the least number of channels that the multiplier leaves; the divisor where it is left out.
    """

    batch_norm: BatchNorm
    gate: Positive
    dropout: Share
    divisor: Count
    min_depth: Count | None = None


class BlockNames(Struct, frozen=True, forbid_unknown_fields=True):
    """Scope of the first block, and of the others (``{index}`` counts from 0)."""

    first: str
    others: str


class Stem(Struct, frozen=True, forbid_unknown_fields=True):
    """The first convolution. The multiplier does not apply to a ``fixed`` one, such as Keras's."""

    kernel: Kernel
    stride: Count
    out: Count
    activation: Activation
    fixed: bool = False


class BlockRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the paper's table, before the multiplier.

    ``fused`` blocks expand with the k x k convolution; without ``skip`` the input is not added to the output.
    """

    stage: int
    kernel: Kernel
    expansion: int | float | str
    out: Count
    se: bool
    activation: Activation
    stride: Count
    fused: bool = False
    skip: bool = True


class Pointwise(Struct, frozen=True, forbid_unknown_fields=True):
    """A 1x1 convolution. The multiplier does not apply to a ``fixed`` one."""

    out: Count
    activation: Activation
    fixed: bool = False


class TailLayer(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One layer of a classifier of several, on (N, features).

    A ``dense`` one has ``out`` features, and the last as many as there are classes (None). A ``batch_norm`` has its
    ``epsilon``, and its ``decay`` where that is not the network's; an ``activation`` its name, and ``leaky_relu`` its
    ``slope`` below 0.
    """

    kind: Literal["dense", "batch_norm", "activation"]
    out: Count | None = None
    epsilon: Positive | None = None
    decay: Share | None = None
    activation: TailActivation | None = None
    slope: Annotated[float, Meta(gt=0, le=1)] | None = None


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The network table of a variant.

    ``output_stride`` is how many pixels a position of the last map may stand for at most; past it, strides become
    dilations. ``pooling`` is over the whole last map; ``none`` flattens a map of ``flat`` (height, width) instead, in
    TensorFlow's order. ``tail`` is the classifier where it has several layers, and ``predictions`` is what follows it.
    """

    multiplier: Positive
    stem: Stem
    blocks: Annotated[list[BlockRow], Meta(min_length=1, max_length=MOST_BLOCKS)]
    last: Pointwise | None
    head: Pointwise | None
    output_stride: Count | None = None
    pooling: Pooling = "average"
    flat: Sides | None = None
    tail: Annotated[list[TailLayer], Meta(max_length=MOST_BLOCKS)] = []
    predictions: Predictions = "softmax"
