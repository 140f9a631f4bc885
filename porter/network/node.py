"""A node, one operation of a network, and what follows from a list of nodes in the order of computation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Literal, NamedTuple

from porter.network.spec import TailActivation

Shape = tuple[int, ...]
Size = tuple[int, int]  # height and width
Operation = Literal[
    "convolution",
    "dense",
    "activation",
    "mean",
    "max",
    "batch_norm",
    "pool",
    "resize",
    "flatten",
    "multiply",
    "add",
    "rows",
    "concat",
    "softmax",
]
IMAGE = "image"  # the network's input


class Node(NamedTuple):
    """One operation, and the value that it gives.

    ``name`` is the value's: TensorFlow's endpoint, or the module where TensorFlow has no name. ``inputs`` are names of
    values. ``endpoints`` are TensorFlow's names of the value, and ``module`` is the module of the PyTorch network that
    gives it.

    A ``convolution`` has SAME padding, with ``stride`` and ``dilation`` along both axes and ``groups``; a ``dense``
    node is a convolution of one position, (N, I) -> (N, O). ``layer`` is the prefix of their entries in the state dict,
    ``shape`` that of the weight (OIHW, or OI), ``norm`` the prefix of the batch norm behind it with its ``epsilon``.
    ``activation`` follows; ``gate`` is relu6(x + 3) times the network's constant, and ``slope`` that of a leaky_relu.

    A ``mean`` or ``max`` is over the whole map, whose axes it keeps. A ``flatten`` of a map of ``window`` has
    TensorFlow's order: channels are the last axis. A ``batch_norm`` stands by itself, on rows of (N, ``shape``). A
    ``pool`` averages over ``window`` without padding, ``step`` apart; a map smaller than the window is pooled whole. A
    ``resize`` is bilinear, to the size of its second input, corner pixels on corner pixels. ``rows`` makes (N,
    positions * a, ``values``) of (N, a * values, H, W), and ``concat`` puts rows one behind the other.
    """

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    endpoints: tuple[str, ...] = ()
    module: str = ""
    layer: str = ""
    shape: Shape = ()
    norm: str = ""
    epsilon: float = 0.0
    activation: TailActivation | Literal["gate"] | None = None
    slope: float = 0.0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    window: Size = (0, 0)
    step: Size = (1, 1)
    values: int = 0


class Group(NamedTuple):
    """Nodes whose entries the rules of one ``section`` of a mapping fill; ``names`` are the values of placeholders.

    Their variables lie ``above`` scopes above that of the network.
    """

    section: str
    names: Mapping[str, str]
    nodes: Sequence[Node]
    above: int = 0


class Map(NamedTuple):
    """A value that a head takes: its name, TensorFlow's endpoint, and its channels."""

    name: str
    endpoint: str
    channels: int


def needed(nodes: Iterable[Node], values: Iterable[str]) -> list[Node]:
    """Those of ``nodes`` that ``values`` are computed from."""
    wanted, found = set(values), []
    for node in reversed(list(nodes)):
        if node.name in wanted:
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]


def behind_gates(nodes: Iterable[Node]) -> set[str]:
    """The layers that get what a gate has scaled: being linear, they can take a factor of the gate."""
    scaled: set[str] = set()
    found = set()
    for node in nodes:
        if node.operation == "multiply" or (node.operation == "resize" and node.inputs[0] in scaled):
            scaled.add(node.name)
        elif node.layer and node.inputs[0] in scaled:
            found.add(node.layer)
    return found


def map_sizes(nodes: Iterable[Node], height: int, width: int) -> dict[str, Size]:
    """Height and width of every value that is a map, for images of ``height`` x ``width``."""
    sizes: dict[str, Size] = {IMAGE: (height, width)}
    for node in nodes:
        before = sizes.get(node.inputs[0], (1, 1))
        if node.operation == "resize":
            sizes[node.name] = sizes[node.inputs[1]]
        elif node.operation == "pool":
            windows = zip(before, node.window, node.step, strict=True)
            rows, columns = ((side - min(side, window)) // step + 1 for side, window, step in windows)
            sizes[node.name] = rows, columns
        elif node.operation in ("mean", "max", "flatten", "dense", "batch_norm", "softmax"):
            sizes[node.name] = 1, 1
        else:
            sizes[node.name] = -(-before[0] // node.stride), -(-before[1] // node.stride)
    return sizes


def multiply_accumulates(nodes: Sequence[Node], size: Size) -> int:
    """Multiply-accumulates of convolutions and dense layers for one image of ``size``; nothing else counted."""
    sizes = map_sizes(nodes, *size)
    return sum(prod(sizes[node.name]) * prod(node.shape) for node in nodes if node.layer)


def activations(nodes: Sequence[Node], size: Size) -> int:
    """Values that these layers put out for one image of ``size``, as timm's cards count them."""
    sizes = map_sizes(nodes, *size)
    return sum(prod(sizes[node.name]) * node.shape[0] for node in nodes if node.layer)


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one spatial axis of ``size`` pixels, as TensorFlow's SAME padding puts them.

    TensorFlow pads so that ``out = ceil(in / stride)`` and puts the odd pixel at the end
    (tensorflow/core/framework/kernel_shape_util.cc). Written without ``max`` over the size where it is not needed, so
    that traced and exported graphs keep the size symbolic.
    """
    reach = dilation * (kernel - 1) + 1 - stride  # total padding where stride divides the size
    total = reach + (-size) % stride
    if reach < 0:
        total = max(total, 0)
    return total // 2, total - total // 2
