"""The topology of a TensorFlow.js graph model: a GraphDef as JSON, whose constants are the weights."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from porter.errors import CheckpointError
from porter.sources import protos
from porter.sources.graphdef_operations import stored_graph
from porter.sources.stored_graph import StoredGraph
from porter.sources.variable import Variable

DTYPES = {"DT_FLOAT": 1, "DT_DOUBLE": 2, "DT_INT32": 3, "DT_UINT8": 4, "DT_BFLOAT16": 14, "DT_HALF": 19}


class _List(msgspec.Struct):
    s: list[str] = []
    i: list[str | int] = []


class _Dim(msgspec.Struct):
    size: str | int = 0


class _Shape(msgspec.Struct):
    dim: list[_Dim] = []


class _Value(msgspec.Struct):
    list: _List | None = None
    s: str | None = None
    f: float | str | None = None
    b: bool | None = None
    type: str | int | None = None
    shape: _Shape | None = None


class _Node(msgspec.Struct):
    name: str
    op: str
    input: list[str] = []
    attr: dict[str, _Value] = {}


def read_topology(nodes: bytes, outputs: tuple[str, ...], variables: Mapping[str, Variable], file: str) -> StoredGraph:
    """The operations of ``nodes``, the topology's. Raises CheckpointError if they are damaged."""
    graph = protos.GraphDef()
    try:
        for node in msgspec.json.decode(nodes, type=list[_Node]):
            added = graph.node.add(
                name=node.name.encode(), op=node.op.encode(), input=[name.encode() for name in node.input]
            )
            for key, value in node.attr.items():
                _fill(added.attr.add(key=key.encode()).value, value)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its modelTopology is damaged ({error}); fetch it again") from error
    return stored_graph(graph, file, lambda node: variables.get(node.name), outputs)


def _fill(proto: Any, value: _Value) -> None:
    """Write ``value`` into an AttrValue. JSON has bytes in base64, and 64-bit numbers as text."""
    if value.list is not None:
        proto.list.s.extend(base64.b64decode(text, validate=True) for text in value.list.s)
        proto.list.i.extend(int(number) for number in value.list.i)
    if value.s is not None:
        proto.s = base64.b64decode(value.s, validate=True)
    if value.f is not None:
        proto.f = float(value.f)
    if value.b is not None:
        proto.b = value.b
    if value.type is not None:
        proto.type = value.type if isinstance(value.type, int) else DTYPES.get(value.type, 0)
    for dim in value.shape.dim if value.shape is not None else ():
        proto.shape.dim.add(size=int(dim.size))
