"""A segmenter's head in a file's graph: the same operations, each of the same values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from porter.network.network import Network
from porter.network.node import IMAGE, Node, Size, map_sizes
from porter.network.nodes import nodes
from porter.sources.stored_graph import ROUNDING, WITH_WEIGHTS, StoredGraph, StoredOperation

KINDS = {"average_pool": "pool", "mean": "pool", "resize": "resize", "multiply": "multiply", "add": "add"}
UNACTIVATED = "/before its activation"


def head_problem(
    network: Network, graph: StoredGraph, trunk: Mapping[str, str], sources: Mapping[str, str], size: Size
) -> str | None:
    """The first operation of the network's head that the file lacks, in words; None where it has all of them.

    ``trunk``: value of the graph -> node that gives it. ``sources``: entry -> variable. ``size`` is of the image.
    """
    every = nodes(network, classes=1)
    sizes = map_sizes(every, *size)
    within = {node.name for node in nodes(replace(network, head=None, backbone=True), classes=0)}
    head = [node for node in every if node.name not in within]
    weights = {sources[f"{node.layer}.weight"]: node for node in head if node.layer}
    found = dict(trunk)

    def given(operation: StoredOperation) -> str | None:
        """The value that ``operation`` gives, in the network's words."""
        inputs = [found[name] for name in operation.inputs if name in found]
        if not inputs or len(inputs) < len(operation.inputs):
            return None
        [first, *_], kind = inputs, operation.kind
        node = weights.get(operation.weights.get("weight", "")) if kind in WITH_WEIGHTS else None
        if node:
            return node.name + UNACTIVATED * bool(node.activation) if first == node.inputs[0] else None
        if kind in (*ROUNDING, "bias", "batch_norm") or (kind == "resize" and operation.window == sizes.get(first)):
            return first
        name = first.removesuffix(UNACTIVATED)
        if name != first:
            return name if kind == next(one.activation for one in head if one.name == name) else None
        return next((one.name for one in head if _same(one, operation, inputs)), None)

    def _same(node: Node, operation: StoredOperation, inputs: list[str]) -> bool:
        if node.activation == "gate":
            return operation.kind == "hard_sigmoid" and inputs == [*node.inputs]
        if KINDS.get(operation.kind) != node.operation:
            return False
        if node.operation == "resize":
            known = operation.window in (sizes[node.inputs[1]], (0, 0))  # zeros: the graph computes the size
            return operation.corners and inputs == [node.inputs[0]] and known
        if node.operation == "pool":
            whole = all(side <= most for side, most in zip(sizes[node.inputs[0]], node.window, strict=True))
            known = (whole or any(operation.window)) if operation.kind == "mean" else operation.padding == "valid"
            return known and inputs == [*node.inputs]
        return sorted(inputs) == sorted(node.inputs)

    for operation in graph.in_order:
        if operation.name not in found and (name := given(operation)):
            found[operation.name] = name
    reached = {*found.values(), IMAGE}
    for node in head:
        if node.name not in reached:
            values = " and ".join(node.inputs)
            return f"its head has no {node.operation} of {values} ({node.name}) as the network has it"
    return None
