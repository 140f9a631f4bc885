"""The operators and tensors of a ``.tflite``, checked against the file's size.

The numbers below are field positions in the FlatBuffer schema, tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from flatbuffers import number_types

from porter.sources.dtypes import ITEM_SIZES
from porter.sources.flatbuffer import Node, read_flatbuffer
from porter.sources.stored_graph import StoredGraph, StoredOperation
from porter.sources.variable import read_file

OPERATORS = {
    0: "add", 1: "average_pool_2d", 2: "concatenation", 3: "conv_2d", 4: "depthwise_conv_2d", 5: "depth_to_space",
    6: "dequantize", 9: "fully_connected", 14: "logistic", 17: "max_pool_2d", 18: "mul", 19: "relu",
    20: "relu_n1_to_1", 21: "relu6", 22: "reshape", 23: "resize_bilinear", 25: "softmax", 28: "tanh", 34: "pad",
    36: "gather", 37: "batch_to_space_nd", 38: "space_to_batch_nd", 39: "transpose", 40: "mean", 41: "sub", 42: "div",
    43: "squeeze", 45: "strided_slice", 49: "split", 50: "log_softmax", 53: "cast", 54: "prelu", 55: "maximum",
    56: "arg_max", 57: "minimum", 60: "padv2", 65: "slice", 67: "transpose_conv", 70: "expand_dims", 74: "sum",
    76: "rsqrt", 77: "shape", 80: "fake_quant", 82: "reduce_max", 83: "pack", 97: "resize_nearest_neighbor",
    98: "leaky_relu", 99: "squared_difference", 100: "mirror_pad", 111: "elu", 114: "quantize", 117: "hard_swish",
    126: "batch_matmul", 150: "gelu", 152: "relu_0_to_1",
}  # fmt: skip
CUSTOM = 32  # operators with this code have their own name
TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
}  # fmt: skip
SIZES = {dtype: ITEM_SIZES[dtype] for dtype in TYPES.values()}
ACTIVATIONS = {0: None, 1: "relu", 2: "relu_n1_to_1", 3: "relu6"}
_FUSED = {"fused": (0, "Int8", 0)}
_STEPS = {"padding": (0, "Int8", 0), "stride_w": (1, "Int32", 0), "stride_h": (2, "Int32", 0)}
_POOL = {**_STEPS, "filter_w": (3, "Int32", 0), "filter_h": (4, "Int32", 0), "fused": (5, "Int8", 0)}
# Operator -> option -> position, type and default
OPTIONS: dict[str, dict[str, tuple[int, str, int]]] = {
    "conv_2d": {**_STEPS, "fused": (3, "Int8", 0), "dilation_w": (4, "Int32", 1), "dilation_h": (5, "Int32", 1)},
    "depthwise_conv_2d": {
        **_STEPS,
        **{"depth_multiplier": (3, "Int32", 0), "fused": (4, "Int8", 0)},
        **{"dilation_w": (5, "Int32", 1), "dilation_h": (6, "Int32", 1)},
    },
    "average_pool_2d": _POOL,
    "max_pool_2d": _POOL,
    **dict.fromkeys(("fully_connected", "add", "mul", "sub", "div"), _FUSED),
    "concatenation": {"axis": (0, "Int32", 0), "fused": (1, "Int8", 0)},
    "resize_bilinear": {"align_corners": (2, "Bool", 0)},
    "softmax": {"beta": (0, "Float32", 0)},
    "leaky_relu": {"alpha": (0, "Float32", 0)},
    "gelu": {"approximate": (0, "Bool", 0)},
    "mean": {"keep_dims": (0, "Bool", 0)},
}


class Tensor(NamedTuple):
    """``start`` and ``size``: the bytes of a constant in the file; ``size`` is 0 for a computed tensor.

    ``scales`` and ``zero_points`` (one, or one per slice of ``axis``) are empty for a float tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int


class Operator(NamedTuple):
    """``kind`` is the schema's name in lower case (``conv_2d``); inputs and outputs are positions of tensors."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fused: str | None
    options: Mapping[str, float] = {}


@dataclass(frozen=True)
class Graph:
    """The first subgraph, which is the only one in MobileNetV3.

    ``operators`` are those that the outputs need, in StoredGraph's order. ``metadata`` is TensorFlow Lite's, unread.
    """

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: bytes

    @cached_property
    def dequantized(self) -> dict[int, int]:
        """Output of each ``dequantize`` -> its input."""
        return {o.outputs[0]: o.inputs[0] for o in self.operators if o.kind == "dequantize" and o.inputs and o.outputs}


def read_graph(path: Path) -> Graph:
    """Read ``path``. Raises CheckpointError if it is damaged."""
    return read_flatbuffer(read_file(path), _graph, f"{path}: damaged or not a .tflite")


def _graph(model: Node) -> Graph:
    size = len(model.table.Bytes)
    kinds = []
    for code in model.children(1):
        number = max(code.number(0, number_types.Int8Flags), code.number(3, number_types.Int32Flags))
        kinds.append((number == CUSTOM and code.text(1)) or OPERATORS.get(number, f"operator {number}"))
    buffers = []
    for buffer in model.children(4):
        start, length = buffer.content(0)
        far, far_length = (buffer.number(field, number_types.Uint64Flags) for field in (1, 2))
        if far > 1:  # a large model's constants lie after the FlatBuffer
            start, length = far, far_length
            if start + length > size:
                raise ValueError("a buffer leaves the file")
        buffers.append((start, length))
    subgraph = next(model.children(2), None)
    if subgraph is None:
        raise ValueError("no subgraph in it")
    tensors = [_tensor(node, buffers) for node in subgraph.children(0)]
    operators = [_operator(node, kinds) for node in subgraph.children(3)]
    inputs, outputs = subgraph.numbers(1, "i"), subgraph.numbers(2, "i")
    for position in (i for ends in (inputs, outputs, *(o.inputs + o.outputs for o in operators)) for i in ends):
        if not -1 <= position < len(tensors):  # -1: an optional input left out
            raise ValueError(f"no tensor {position}")
    start = length = 0
    for entry in model.children(6):
        if entry.text(0) == "TFLITE_METADATA":
            start, length = buffers[entry.number(1, number_types.Uint32Flags)]
    metadata = bytes(model.table.Bytes[start : start + length])
    return Graph(tensors, _in_order(operators, outputs), inputs, outputs, metadata)


def _in_order(operators: list[Operator], outputs: tuple[int, ...]) -> list[Operator]:
    """``operators`` in the order of the graph, whatever their order in the file."""
    computed = {output for operator in operators for output in operator.outputs}
    makers: dict[int, str] = {}
    bare = []
    for number, operator in enumerate(operators):
        if any(i in computed and i not in makers for i in operator.inputs if i >= 0):
            raise ValueError(f"operator {number} takes what is computed later")
        inputs = tuple(makers[i] for i in operator.inputs if i in makers)
        bare.append(StoredOperation(str(number), operator.kind, inputs))
        for output in (i for i in operator.outputs if i >= 0):
            if output in makers:
                raise ValueError(f"tensor {output} is computed twice")
            makers[output] = str(number)
    needed = StoredGraph(bare, [makers[i] for i in outputs if i in makers]).in_order
    return [operators[int(operation.name)] for operation in needed]


def _tensor(node: Node, buffers: list[tuple[int, int]]) -> Tensor:
    name, shape = node.text(3), tuple(int(side) for side in node.numbers(0, "i"))
    number = node.number(1, number_types.Int8Flags)
    dtype = TYPES.get(number, f"type {number}")
    start, length = buffers[node.number(2, number_types.Uint32Flags)]
    if length and (min(shape, default=0) < 0 or math.prod(shape) * SIZES.get(dtype, 0) != length):
        raise ValueError(f"tensor {name}: {length} bytes for shape {list(shape)} of {dtype}")
    quantization = node.child(4)
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if quantization is not None:
        scales, zero_points = quantization.numbers(2, "f"), quantization.numbers(3, "q")
        axis = quantization.number(6, number_types.Int32Flags)
        zero_points = zero_points or (0,) * len(scales)
        slices = shape[axis] if 0 <= axis < len(shape) else 1
        if len(scales) != len(zero_points) or len(scales) not in (0, 1, slices):
            raise ValueError(f"tensor {name}: {len(scales)} scales and {len(zero_points)} zero points")
    return Tensor(name, shape, dtype, start, length, scales, zero_points, axis)


def _operator(node: Node, kinds: list[str]) -> Operator:
    kind = kinds[node.number(0, number_types.Uint32Flags)]
    table = node.child(4)
    values = {
        option: table.number(field, getattr(number_types, f"{type_}Flags"), default) if table else default
        for option, (field, type_, default) in OPTIONS.get(kind, {}).items()
    }
    fused = values.get("fused", 0)
    activation = ACTIVATIONS.get(fused, f"activation {fused}")
    return Operator(kind, node.numbers(1, "i"), node.numbers(2, "i"), activation, values)
