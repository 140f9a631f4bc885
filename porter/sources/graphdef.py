"""Reader of frozen graphs (a binary GraphDef): the constants that feed operators as their weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from porter.errors import CheckpointError
from porter.sources import dtypes, protos
from porter.sources.bounds import MOST_BEHIND, check_shape
from porter.sources.content import recognised
from porter.sources.dtypes import tensor_values
from porter.sources.stored_graph import StoredGraph
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


_LAYERS = (b"Conv2D", b"DepthwiseConv2dNative", b"MatMul")
# How many of their inputs matter: the weights of quantisation-aware training are folded, then rounded
_COMPUTES_WEIGHTS = {
    **dict.fromkeys((b"Mul", b"Sub", b"Add", b"AddV2"), 2),
    **dict.fromkeys((b"Rsqrt", b"Reshape", b"Squeeze", b"ExpandDims"), 1),
    **dict.fromkeys((b"FakeQuantWithMinMaxVars", b"FakeQuantWithMinMaxVarsPerChannel"), 1),
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
        positions = _WEIGHT_INPUTS.get(node.op, ())
        if node.op in (b"Add", b"AddV2") and len(node.input) == 2:
            given, added = (_node(nodes, name).op for name in node.input)
            positions = (1,) if given in _LAYERS or added == b"Sub" else ()  # the shift of a batch norm
        for position in positions:
            for constant in _constants(nodes, node.input[position]) if position < len(node.input) else ():
                variable = variable_of(constant.name.decode(errors="replace"), constant.attr, path)
                variables[variable.name] = variable
    if not variables:
        raise CheckpointError(f"{path}: no weights in it: not a frozen graph (variables are not yet constants)?")
    return Contents(variables, [path], graph=partial(read_frozen, graph, path))


def read_frozen(graph: Any, path: Path) -> StoredGraph:
    """The operations of the GraphDef ``graph``, whose weights are constants. Raises CheckpointError."""
    from porter.sources.graphdef_operations import Source, stored_graph

    return stored_graph(Source(graph, str(path), lambda node: variable_of(node.name, node.attributes, path)))


def _node(nodes: dict[bytes, Any], name: bytes) -> Any:
    """The node of the input ``name``, an empty one if there is none; through the Identity that freezing may leave."""
    empty = protos.GraphDef().node.add()
    node = nodes.get(name.split(b":")[0], empty)
    return nodes.get(node.input[0].split(b":")[0], empty) if node.op == b"Identity" and node.input else node


def _constants(nodes: dict[bytes, Any], name: bytes) -> list[Any]:
    """The Const node of the input ``name``; those behind it where quantisation-aware training computes weights."""
    node = _node(nodes, name)
    if node.op == b"Const":
        return [node]
    found, waiting, seen = [], [node], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if node.op not in _COMPUTES_WEIGHTS or seen > MOST_BEHIND:
            return []
        for one in node.input[: _COMPUTES_WEIGHTS[node.op]]:
            inner = _node(nodes, one)
            if inner.op != b"Const":
                waiting.append(inner)
            elif _rank(inner):  # not epsilon
                found.append(inner)
    return found


def _rank(node: Any) -> int:
    return next((len(attr.value.tensor.tensor_shape.dim) for attr in node.attr if attr.key == b"value"), 0)


def variable_of(name: str, attributes: Any, path: Path) -> Variable:
    """The value of a Const node. Raises CheckpointError."""
    proto = next((attr.value.tensor for attr in attributes if attr.key == b"value"), None)
    if proto is None:
        raise CheckpointError(f"{path}: tensor {name}: a constant without a value; the graph is damaged")
    what, dtype = f"{path}: tensor {name}", dtypes.name_of(proto.dtype)
    shape = check_shape(protos.shape_of(proto.tensor_shape), what)
    return Variable(name, shape, dtype, name, str(path), lambda: tensor_values(proto, shape, dtype, what, zeros=True))
