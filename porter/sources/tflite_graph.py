"""The operators and tensors of a ``.tflite``, checked against the file's size.

The numbers below are field positions in the FlatBuffer schema, tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from flatbuffers import number_types
from flatbuffers.table import Table

from porter.errors import CheckpointError

OPERATORS = {
    0: "add", 1: "average_pool_2d", 2: "concatenation", 3: "conv_2d", 4: "depthwise_conv_2d", 6: "dequantize",
    9: "fully_connected", 14: "logistic", 18: "mul", 19: "relu", 21: "relu6", 22: "reshape", 23: "resize_bilinear",
    25: "softmax", 34: "pad", 40: "mean", 41: "sub",
    114: "quantize", 117: "hard_swish",
}  # fmt: skip
TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
}
SIZES = {"float32": 4, "float16": 2, "int32": 4, "uint8": 1, "int64": 8, "bool": 1, "int16": 2, "int8": 1, "float64": 8}
ACTIVATIONS = {0: None, 1: "relu", 2: "relu_n1_to_1", 3: "relu6"}
MIN_NUMBERS = 1 << 16  # more than the operators and tensors of any network here have
# Operator -> position of the fused activation among its options
_ACTIVATION_FIELD = {"conv_2d": 3, "depthwise_conv_2d": 4, "fully_connected": 0, "add": 0, "mul": 0, "sub": 0}


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


@dataclass(frozen=True)
class Graph:
    """The first subgraph, which is the only one in MobileNetV3."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def dequantized(self) -> dict[int, int]:
        """Output of each ``dequantize`` -> its input."""
        return {o.outputs[0]: o.inputs[0] for o in self.operators if o.kind == "dequantize" and o.inputs and o.outputs}


def read_graph(path: Path) -> Graph:
    """Read ``path``. Raises CheckpointError if it is damaged."""
    try:
        data = path.read_bytes()
        root = struct.unpack_from("<I", data)[0]
        return _graph(_Node(Table(data, root), [len(data) // 4 + MIN_NUMBERS]))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, UnicodeDecodeError) as error:
        # What FlatBuffers' accessors raise on bad offsets
        raise CheckpointError(f"{path}: damaged or not a .tflite ({error}); fetch it again") from error


class _Node:
    """A FlatBuffers table with fields by position."""

    def __init__(self, table: Table, left: list[int]) -> None:
        self.table = table
        self.left = left  # elements that may still be read; a file can share vectors, memory cannot

    def _offset(self, position: int) -> int:
        offset: int = self.table.Offset(4 + 2 * position)
        return offset

    def number(self, position: int, flags: Any, default: int = 0) -> int:
        value: int = self.table.GetSlot(4 + 2 * position, default, flags)
        return value

    def child(self, position: int) -> _Node | None:
        offset = self._offset(position)
        if not offset:
            return None
        return _Node(Table(self.table.Bytes, self.table.Indirect(offset + self.table.Pos)), self.left)

    def text(self, position: int) -> str:
        offset = self._offset(position)
        return self.table.String(offset + self.table.Pos).decode(errors="replace") if offset else ""

    def _vector(self, position: int, width: int) -> tuple[int, int]:
        """Start and length of a vector, which must lie in the file."""
        offset = self._offset(position)
        if not offset:
            return 0, 0
        start, length = self.table.Vector(offset), self.table.VectorLen(offset)
        if start < 0 or start + length * width > len(self.table.Bytes):
            raise ValueError(f"a vector of {length} elements leaves the file")
        return start, length

    def numbers(self, position: int, code: str) -> tuple[Any, ...]:
        start, length = self._vector(position, struct.calcsize(f"<{code}"))
        self._take(length)
        return struct.unpack_from(f"<{length}{code}", self.table.Bytes, start)

    def children(self, position: int) -> Iterator[_Node]:
        start, length = self._vector(position, 4)
        self._take(length)
        for index in range(length):
            yield _Node(Table(self.table.Bytes, self.table.Indirect(start + 4 * index)), self.left)

    def _take(self, count: int) -> None:
        self.left[0] -= count
        if self.left[0] < 0:
            raise ValueError("its vectors are shared, and longer together than the file")

    def content(self, position: int) -> tuple[int, int]:
        return self._vector(position, 1)


def _graph(model: _Node) -> Graph:
    size = len(model.table.Bytes)
    kinds = []
    for code in model.children(1):
        number = max(code.number(0, number_types.Int8Flags), code.number(3, number_types.Int32Flags))
        kinds.append(OPERATORS.get(number, f"operator {number}"))
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
    return Graph(tensors, operators, inputs, outputs)


def _tensor(node: _Node, buffers: list[tuple[int, int]]) -> Tensor:
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


def _operator(node: _Node, kinds: list[str]) -> Operator:
    kind = kinds[node.number(0, number_types.Uint32Flags)]
    options = node.child(4)
    fused = 0
    if options is not None and kind in _ACTIVATION_FIELD:
        fused = options.number(_ACTIVATION_FIELD[kind], number_types.Int8Flags)
    return Operator(kind, node.numbers(1, "i"), node.numbers(2, "i"), ACTIVATIONS.get(fused, f"activation {fused}"))
