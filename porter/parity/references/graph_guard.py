"""The part of a stored graph that TensorFlow runs: what the endpoints need, from a list of harmless operations.

A graph from the internet is a program. Operations that read or write files, call Python or keep state are refused under
any name, as is every other operation that is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from porter.errors import ParityError

# Pure functions: no I/O, no state, no Python. Inference graphs of these networks need no others.
# Sources: slim/nets/mobilenet (classification, DeepLab, SSD backbones), tf.keras.applications.mobilenet_v3.
ALLOWED = frozenset(
    (
        "Placeholder", "Const", "Identity", "NoOp",
        "Conv2D", "DepthwiseConv2dNative", "MatMul", "BiasAdd",
        "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3",
        "Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg", "Sqrt", "Rsqrt", "Maximum", "Minimum",
        "Relu", "Relu6", "Sigmoid", "Softmax", "Elu", "Selu", "LeakyRelu", "Tanh", "Erf", "Erfc",
        "Mean", "Max", "AvgPool", "ResizeBilinear", "SpaceToBatchND", "BatchToSpaceND",
        "Pad", "Reshape", "Squeeze", "ExpandDims", "Shape", "StridedSlice", "Pack", "Unpack", "Cast",
    )
)  # fmt: skip
VARIABLES = frozenset(("Variable", "VariableV2", "VarHandleOp"))  # replaced by constants before TensorFlow sees them
READ = "ReadVariableOp"

# Most values that a constant may fill by repeating its last one; no weight of these networks needs more
MAX_REPEATED = 1 << 16
FLOAT = 1  # DT_FLOAT of tensorflow/core/framework/types.proto
MAX_NODES = 100_000  # the largest graph seen, a training graph of large_100, has 8,000


def guarded(definition: Any, fetches: Iterable[str], cut: str, path: str, values: Mapping[str, Any]) -> Any:
    """A new GraphDef of what ``fetches`` (node names) depend on, with a Placeholder in place of the tensor ``cut``.

    ``values`` (name -> array) replace variables. Devices, functions and attributes that TensorFlow makes for itself are
    dropped. Raises ParityError that names the first operation that is not allowed.
    """
    if len(definition.node) > MAX_NODES:
        raise ParityError(f"{path}: {len(definition.node)} operations, more than any network here has")
    nodes = {node.name: node for node in definition.node}
    needed = _dependencies(nodes, fetches, cut, path)
    graph = type(definition)()
    graph.versions.CopyFrom(definition.versions)
    placeholder = nodes.get(node_of(cut))
    _placeholder(
        graph, cut, placeholder.attr["dtype"].type if placeholder and placeholder.op == "Placeholder" else FLOAT
    )
    for name in needed:
        _copy(graph, nodes[name], path, values)
    return graph


def _dependencies(nodes: Mapping[str, Any], fetches: Iterable[str], cut: str, path: str) -> list[str]:
    """The nodes that ``fetches`` need, inputs first; control edges count as inputs."""
    order: list[str] = []
    done: set[str] = {node_of(cut)}
    pending = [(name, False) for name in fetches]
    open_: set[str] = set()
    while pending:
        name, expanded = pending.pop()
        if expanded:
            open_.discard(name)
            done.add(name)
            order.append(name)
            continue
        if name in done:
            continue
        if name in open_:
            raise ParityError(f"{path}: operation {name} depends on itself")
        node = nodes.get(name)
        if node is None:
            raise ParityError(f"{path}: an operation needs {name}, which is not in the graph")
        check_operation(node, path)
        open_.add(name)
        pending.append((name, True))
        pending += [(node_of(source), False) for source in node.input if node_of(source) not in done]
    return order


def check_operation(node: Any, path: str) -> None:
    """Raise ParityError, naming the operation, unless it is on the list."""
    if node.op not in ALLOWED | VARIABLES | {READ}:
        raise ParityError(
            f"{path}: operation {node.op} ({node.name}) is not one that an inference graph of these networks needs, so "
            "the graph is not run; compare with our own graph of its variables (reference tf.nn)"
        )
    if node.op.startswith("FusedBatchNorm") and ("is_training" not in node.attr or node.attr["is_training"].b):
        raise ParityError(f"{path}: is the graph for training (batch statistics); use the reference tf.nn")
    if node.op == "Const":
        _check_constant(node, path)


def _check_constant(node: Any, path: str) -> None:
    proto = node.attr["value"].tensor
    sides = [dim.size for dim in proto.tensor_shape.dim]
    if any(side < 0 for side in sides) or proto.tensor_shape.unknown_rank or len(sides) > 8:
        raise ParityError(f"{path}: constant {node.name} has the impossible shape {sides[:8]}")
    if not proto.tensor_content and math.prod(sides) > MAX_REPEATED:
        raise ParityError(f"{path}: constant {node.name} repeats one value for shape {sides}; no weight does")


def node_of(source: str) -> str:
    """The name of the node behind an input (``name``, ``name:1``, ``^name``)."""
    return source.removeprefix("^").split(":")[0]


def _placeholder(graph: Any, cut: str, dtype: int) -> None:
    node = graph.node.add(name=node_of(cut), op="Placeholder")
    node.attr["dtype"].type = dtype
    for _ in range(4):
        node.attr["shape"].shape.dim.add(size=-1)


def _copy(graph: Any, node: Any, path: str, values: Mapping[str, Any]) -> None:
    copy = graph.node.add(name=node.name, op=node.op)
    copy.input.extend(source for source in node.input if not source.startswith("^"))
    if node.op in VARIABLES:
        if node.name not in values:
            raise ParityError(f"{path}: variable {node.name} has no value in the checkpoint")
        constant(copy, values[node.name])
        return
    if node.op == READ:
        copy.op = "Identity"
        copy.attr["T"].type = node.attr["dtype"].type
        return
    for key, value in node.attr.items():
        if not key.startswith("_"):
            copy.attr[key].CopyFrom(value)


def constant(node: Any, values: Any) -> None:
    """Make ``node`` a Const of ``values`` (an array)."""
    from porter.parity.references.live_tensorflow import tensorflow

    proto = tensorflow().make_tensor_proto(values)
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)
