"""Writer of ``.tflite`` files: one graph of tensors and operators as a FlatBuffer.

Numbers are field positions in tensorflow/compiler/mlir/lite/schema/schema.fbs; tflite_graph.py reads the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np

from porter.sources.tflite_graph import ACTIVATIONS, CUSTOM, OPERATORS, OPTIONS, TYPES

IDENTIFIER, VERSION = b"TFL3", 3
ALIGNMENT = 16  # bytes, of constants: runtimes use them in place
CODES = {kind: code for code, kind in OPERATORS.items()}
TYPE_NUMBERS = {dtype: number for number, dtype in TYPES.items()}
FUSED = {activation: number for number, activation in ACTIVATIONS.items()}
# Operator -> number of its options in the union, and count of their fields
UNION = {
    "conv_2d": (1, 7), "depthwise_conv_2d": (2, 7), "average_pool_2d": (5, 6), "max_pool_2d": (5, 6), "softmax": (9, 1),
    "concatenation": (10, 2), "add": (11, 2), "resize_bilinear": (15, 4), "reshape": (17, 1), "mul": (21, 1),
    "mean": (27, 1), "leaky_relu": (75, 1),
}  # fmt: skip
SAME, VALID = 0, 1  # paddings


class NewTensor(NamedTuple):
    """A constant, or a computed tensor if ``data`` is None. A first side of -1 takes a batch of any size.

    ``scales`` and ``zero_points`` (one, or one per slice of ``axis``) are empty for a float tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0


class NewOperator(NamedTuple):
    """An operator (``conv_2d``): positions of its tensors, options by name.

    A custom operator has the option ``custom``, bytes.
    """

    kind: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: dict[str, Any]


def flexbuffer(options: dict[str, bool | int | float]) -> bytes:
    """The options of a custom operator, encoded."""
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for name, value in options.items():
            write = (
                builder.Bool if isinstance(value, bool) else builder.Int if isinstance(value, int) else builder.Float
            )
            write(name, value)
    return bytes(builder.Finish())


def tflite_bytes(
    tensors: Sequence[NewTensor], steps: Sequence[NewOperator], given: int, outputs: Sequence[int]
) -> bytes:
    """The file that computes ``outputs`` from the tensor ``given``; the same graph gives the same bytes."""
    builder = flatbuffers.Builder(1 << 20)
    kinds = sorted({step.kind for step in steps})
    buffers = [_table(builder, 3, {})]  # the first is for computed tensors
    written = []
    for tensor in tensors:
        number = 0
        if tensor.data is not None:
            number = len(buffers)
            data = _aligned(builder, np.ascontiguousarray(tensor.data).tobytes())
            buffers.append(_table(builder, 3, {0: ("UOffsetTRelative", data)}))
        written.append(_tensor(builder, tensor, number))
    operators = [_operator(builder, step, kinds.index(step.kind)) for step in steps]
    codes = []
    for kind in kinds:
        code = CODES.get(kind, CUSTOM)
        # The first field is of the time when there were fewer than 128
        fields: dict[int, tuple[str, Any]] = {0: ("Int8", min(code, 127)), 2: ("Int32", 1), 3: ("Int32", code)}
        if code == CUSTOM:
            fields[1] = ("UOffsetTRelative", builder.CreateString(kind))
        codes.append(_table(builder, 4, fields))
    parts = [_tables(builder, written), _numbers(builder, [given], "i4"), _numbers(builder, outputs, "i4")]
    parts.append(_tables(builder, operators))
    graph = _table(builder, 6, {number: ("UOffsetTRelative", at) for number, at in enumerate(parts)})
    vectors = {1: _tables(builder, codes), 2: _tables(builder, [graph]), 4: _tables(builder, buffers)}
    vectors[3] = builder.CreateString("mnv3-port")
    offsets = {number: ("UOffsetTRelative", at) for number, at in vectors.items()}
    builder.Finish(_table(builder, 10, {0: ("Uint32", VERSION)} | offsets), IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, tensor: NewTensor, buffer: int) -> int:
    fields = {1: ("Int8", TYPE_NUMBERS[tensor.dtype]), 2: ("Uint32", buffer)}
    offsets = {0: _numbers(builder, [abs(side) for side in tensor.shape], "i4")}
    offsets[3] = builder.CreateString(tensor.name)
    if tensor.scales:
        scales, zero_points = _numbers(builder, tensor.scales, "f4"), _numbers(builder, tensor.zero_points, "i8")
        quantization = {2: ("UOffsetTRelative", scales), 3: ("UOffsetTRelative", zero_points)}
        offsets[4] = _table(builder, 7, quantization | {6: ("Int32", tensor.axis)})
    if -1 in tensor.shape:
        offsets[7] = _numbers(builder, tensor.shape, "i4")
    return _table(builder, 11, fields | {number: ("UOffsetTRelative", at) for number, at in offsets.items()})


def _operator(builder: Any, step: NewOperator, code: int) -> int:
    offsets = {1: _numbers(builder, step.inputs, "i4"), 2: _numbers(builder, step.outputs, "i4")}
    fields: dict[int, tuple[str, Any]] = {0: ("Uint32", code)}
    if step.kind in UNION:
        union, count = UNION[step.kind]
        fields[3] = ("Uint8", union)
        places = OPTIONS.get(step.kind, {})
        values = {places[name][0]: (places[name][1], value) for name, value in step.options.items()}
        offsets[4] = _table(builder, count, values)
    elif "custom" in step.options:
        offsets[5] = _numbers(builder, np.frombuffer(step.options["custom"], np.uint8), "u1")
    return _table(builder, 14, fields | {number: ("UOffsetTRelative", at) for number, at in offsets.items()})


def _table(builder: Any, count: int, fields: dict[int, tuple[str, Any]]) -> int:
    """A table of ``count`` fields: position -> type and value. Fields left out have the schema's default."""
    builder.StartObject(count)
    for position, (kind, value) in sorted(fields.items()):
        prepend: Callable[[int, Any, Any], None] = getattr(builder, f"Prepend{kind}Slot")
        prepend(position, value, 0)
    at: int = builder.EndObject()
    return at


def _tables(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    at: int = builder.EndVector()
    return at


def _numbers(builder: Any, values: Sequence[float] | np.ndarray, dtype: str) -> int:
    at: int = builder.CreateNumpyVector(np.array(values, f"<{dtype}"))
    return at


def _aligned(builder: Any, data: bytes) -> int:
    """A byte vector that begins at a multiple of ALIGNMENT."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head = builder.Head() - len(data)
    builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
    at: int = builder.EndVector()
    return at
