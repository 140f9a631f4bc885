"""The part of a mapping file that describes the network, as typed values; docs/mapping-format.md explains each key."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct, field

Activation = Literal["relu", "hard_swish", "relu6"]


class ActivationForms(NamedTuple):
    """An activation in every form of a network.

    ``torch`` is the class of ``torch.nn`` and ``function`` that of ``torch.nn.functional``. ``onnx`` is the operator of
    ONNX, and ``limits`` are constants that it takes. ``tflite`` is the operator of TensorFlow Lite, which is ``fused``
    into the convolution where that can be. ``slim`` ends the name of its operation in a TensorFlow graph, and ``card``
    is timm's word for it. The tf.nn reference has its own arithmetic, for it is evidence.
    """

    torch: str
    function: str
    onnx: str
    tflite: str
    slim: str
    card: str
    limits: tuple[float, ...] = ()
    fused: bool = True


ACTIVATIONS: dict[Activation, ActivationForms] = {
    "relu": ActivationForms("ReLU", "relu", "Relu", "relu", "Relu", "ReLU"),
    "relu6": ActivationForms("ReLU6", "relu6", "Clip", "relu6", "Relu6", "ReLU6", limits=(0.0, 6.0)),
    # x * relu6(x + 3) / 6: slim's h-swish has 1/6, unlike its squeeze-excite gate
    "hard_swish": ActivationForms(
        "Hardswish", "hardswish", "HardSwish", "hard_swish", "hard_swish/mul_1", "Hard Swish", fused=False
    ),
}
BlockKind = Literal["separable", "inverted_residual", "fused", "projection"]


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
    """Constants of the network that are neither weights nor in the table.

    ``min_depth`` is the least number of channels that the multiplier leaves; the divisor where it is left out.
    """

    batch_norm: BatchNorm
    gate: float
    dropout: float
    divisor: int
    min_depth: int | None = None


class BlockNames(Struct, frozen=True, forbid_unknown_fields=True):
    """Scope of the first block, and of the others (``{index}`` counts from 0)."""

    first: str
    others: str


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
    """A 1x1 convolution. The multiplier does not apply to a ``fixed`` one."""

    out: int
    activation: Activation
    fixed: bool = False


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The network table of a variant.

    ``output_stride`` is how many pixels a position of the last map may stand for at most; past it, strides become
    dilations.
    """

    multiplier: float
    stem: Stem
    blocks: list[BlockRow]
    last: Pointwise | None
    head: Pointwise | None
    output_stride: int | None = None


class Segmentation(Struct, frozen=True, forbid_unknown_fields=True):
    """The LR-ASPP head of DeepLab, on the last map and on that of the endpoint ``low``.

    ``filters`` are its inner channels. ``window`` and ``stride`` (height, width) are of its pooling, in positions of
    the last map; a map that is smaller is pooled whole. ``epsilon`` is that of its batch norm.
    """

    filters: int
    window: list[int]
    stride: list[int]
    epsilon: float
    low: str


class Anchors(Struct, frozen=True, forbid_unknown_fields=True):
    """What boxes are told by: ``ratios`` (width to height) at scales from ``min_scale`` to ``max_scale`` of the image.

    On every map one more box, square, lies between its scale and the next; the first map has three boxes alone.
    """

    min_scale: float
    max_scale: float
    ratios: list[float]


class Detection(Struct, frozen=True, forbid_unknown_fields=True):
    """The SSDLite head: on the map of the endpoint ``first``, the last one, and further ones of ``extra`` channels.

    ``coder`` are the factors of encoded centres and sizes (y, x, height, width).
    """

    first: str
    extra: list[int]
    anchors: Anchors
    coder: list[float]


class Architecture(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a network is made of.

    ``block`` and ``module`` name its blocks in TensorFlow and in the state dict; ``bn_folded`` (``folded`` in the file)
    tells that batch norms are folded into the weights.
    """

    input: Input
    definition: Definition
    block: BlockNames
    module: str
    network: Table
    segmentation: Segmentation | None = None
    detection: Detection | None = None
    bn_folded: bool = field(name="folded", default=False)
