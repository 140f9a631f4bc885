"""Reader of frozen graphs (a binary GraphDef): the constants that feed operators as their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from porter.errors import CheckpointError
from porter.sources import dtypes, protos
from porter.sources.bounds import check_shape
from porter.sources.content import recognised
from porter.sources.dtypes import tensor_values
from porter.sources.variable import Contents, Variable

# Operator -> the inputs that are weights. Other constants (axes, h-swish's 3 and 1/6) are arithmetic.
_WEIGHT_INPUTS = {
    b"Conv2D": (1,),
    b"DepthwiseConv2dNative": (1,),
    b"MatMul": (1,),
    b"BiasAdd": (1,),
    b"FusedBatchNorm": (1, 2, 3, 4),
    b"FusedBatchNormV2": (1, 2, 3, 4),
    b"FusedBatchNormV3": (1, 2, 3, 4),
}


# The key of a GraphDef's first field: node, library, version or versions
FIRST_BYTES = (b"\x0a", b"\x12", b"\x18", b"\x22")


def read_graphdef(path: Path) -> Contents:
    """Open the frozen graph ``path``; its weights have the variables' names.

    Raises CheckpointError if the file is no GraphDef or holds no weights.
    """
    try:
        with path.open("rb") as file:
            data = file.read(1)
            if data not in FIRST_BYTES:  # before reading gigabytes
                what = recognised(path) or "not a frozen graph, nor anything else that holds a checkpoint"
                raise CheckpointError(f"{path}: {what}")
            data += file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        graph = protos.parse(protos.GraphDef, data, str(path), "the file is not a frozen graph, or it")
    except CheckpointError as error:
        known = recognised(path)
        if known is None:
            raise
        raise CheckpointError(f"{path}: {known}") from error
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
    return Contents(variables, [path])


def _constant(nodes: dict[bytes, Any], name: bytes) -> Any | None:
    """The Const node of the input ``name``, through the Identity that freezing may leave (``/read``)."""
    node = nodes.get(name.split(b":")[0])
    if node is not None and node.op == b"Identity" and node.input:
        node = nodes.get(node.input[0].split(b":")[0])
    return node if node is not None and node.op == b"Const" else None


def _variable(node: Any, path: Path) -> Variable:
    name = node.name.decode(errors="replace")
    proto = next((attr.value.tensor for attr in node.attr if attr.key == b"value"), None)
    if proto is None:
        raise CheckpointError(f"{path}: tensor {name}: a constant without a value; the graph is damaged")
    what, dtype = f"{path}: tensor {name}", dtypes.name_of(proto.dtype)
    shape = check_shape(protos.shape_of(proto.tensor_shape), what)
    return Variable(name, shape, dtype, name, str(path), lambda: tensor_values(proto, shape, dtype, what))
