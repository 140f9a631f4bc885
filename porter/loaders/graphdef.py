"""Reader of frozen graphs (a binary GraphDef): the constants that feed operators as their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.loaders import dtypes, protos
from porter.loaders.variable import Variable

if TYPE_CHECKING:
    import numpy as np

# Operator -> the inputs that are weights. Everything else constant (axes, h-swish's 3 and 1/6) is arithmetic.
_WEIGHT_INPUTS = {
    b"Conv2D": (1,),
    b"DepthwiseConv2dNative": (1,),
    b"MatMul": (1,),
    b"BiasAdd": (1,),
    b"FusedBatchNorm": (1, 2, 3, 4),
    b"FusedBatchNormV2": (1, 2, 3, 4),
    b"FusedBatchNormV3": (1, 2, 3, 4),
}

# TensorProto stores few values, or repeated ones, in a typed list instead of tensor_content.
_VALUE_FIELDS = {
    "float32": "float_val", "float64": "double_val", "int32": "int_val", "int16": "int_val",
    "int8": "int_val", "uint8": "int_val", "int64": "int64_val", "bool": "bool_val",
    "float16": "half_val", "bfloat16": "half_val",
}  # fmt: skip


def read_graphdef(path: Path) -> dict[str, Variable]:
    """Open the frozen graph ``path`` and return its weights under the variables' names.

    Raises CheckpointError when the file is no GraphDef or holds no weights.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    graph = protos.parse(protos.GraphDef, data, str(path), "the file is not a frozen graph, or it")
    nodes = {node.name: node for node in graph.node}
    variables = {}
    for node in graph.node:
        for position in _WEIGHT_INPUTS.get(node.op, ()):
            constant = _constant(nodes, node.input[position]) if position < len(node.input) else None
            if constant is not None:
                variable = _variable(constant, path)
                variables[variable.name] = variable
    if not variables:
        raise CheckpointError(f"{path}: no weights in it: not a frozen graph (variables are not yet constants)?")
    return variables


def _constant(nodes: dict[bytes, Any], name: bytes) -> Any | None:
    """The Const node behind the input ``name``, through the Identity that freezing may leave (``/read``)."""
    node = nodes.get(name.split(b":")[0])
    if node is not None and node.op == b"Identity" and node.input:
        node = nodes.get(node.input[0].split(b":")[0])
    return node if node is not None and node.op == b"Const" else None


def _variable(node: Any, path: Path) -> Variable:
    name = node.name.decode(errors="replace")
    proto = next((attr.value.tensor for attr in node.attr if attr.key == b"value"), None)
    if proto is None:
        raise CheckpointError(f"{path}: tensor {name}: a constant without a value; the graph is damaged")
    shape, dtype = protos.shape_of(proto.tensor_shape), dtypes.NAMES.get(proto.dtype, f"dtype {proto.dtype}")
    return Variable(name, shape, dtype, name, str(path), _reader(proto, name, shape, dtype, path))


def _reader(proto: Any, name: str, shape: tuple[int, ...], dtype: str, path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        import numpy as np

        if dtype not in _VALUE_FIELDS:
            raise CheckpointError(f"{path}: tensor {name}: {dtype} constants cannot be read")
        count, stored = math.prod(shape), dtypes.to_numpy(dtype)
        if proto.tensor_content:
            values = proto.tensor_content
            if len(values) != count * stored.itemsize:
                raise CheckpointError(f"{path}: tensor {name}: {len(values)} bytes for shape {shape} of {dtype}")
            return np.frombuffer(values, stored.newbyteorder("<")).astype(stored, copy=False).reshape(shape)
        listed = getattr(proto, _VALUE_FIELDS[dtype])
        if not 0 < len(listed) <= count:
            raise CheckpointError(f"{path}: tensor {name}: {len(listed)} values for shape {shape}")
        if _VALUE_FIELDS[dtype] == "half_val":  # the bit patterns of 16-bit floats
            values = np.array(listed, np.uint16).view(stored)
        else:
            values = np.array(listed, stored)
        # A shorter list means that its last value repeats (tensorflow/core/framework/tensor.proto).
        return np.concatenate([values, np.repeat(values[-1:], count - len(values))]).reshape(shape)

    return read
