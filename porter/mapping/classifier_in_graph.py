"""The classifier that a file has behind the network's last map, whatever its layers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from msgspec.structs import replace as replace_struct

from porter.errors import MappingError, NotTheNetworkError, Option
from porter.mapping.axes import Layout
from porter.mapping.by_graph import Naming
from porter.mapping.rules import expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.network import Network, build_network, tail_layer
from porter.network.node import map_sizes
from porter.network.nodes import nodes
from porter.network.spec import TAIL_ACTIVATIONS, Pooling, TailLayer
from porter.sources import Checkpoint
from porter.sources.dtypes import as_float32
from porter.sources.stored_graph import ACTIVATIONS, ROUNDING, WITH_WEIGHTS, Sides, StoredGraph, StoredOperation

NOTHING_AT_ONE_POSITION = ("flatten", "mean", "max", "average_pool", "max_pool")  # slim pools twice
DECISIONS = ("ArgMax", "TopKV2", "arg_max", "topk_v2", "Argmax", "TopK")  # of graphs, .tflite and Keras


class _Layer(NamedTuple):
    """A layer, and its variables by role. ``own``: it is the variant's classifier."""

    layer: TailLayer
    weights: dict[str, str]
    own: bool = False


def with_classifier(
    mapping: VariantMapping,
    checkpoint: Checkpoint,
    graph: StoredGraph,
    end: str,
    sides: Sides | None,
    pooled: bool = False,
) -> VariantMapping:
    """``mapping`` with the classifier behind the value ``end``, the trunk's last map or, ``pooled``, its mean.

    It has the file's names of the classifier's variables, where that is not the variant's own. ``sides`` are the
    image's, where the file states them. Raises NotTheNetworkError where there is no classifier.
    """
    network = build_network(mapping)
    trunk = nodes(replace(network, backbone=True), classes=0)
    last_map = map_sizes(trunk, *(sides or mapping.input.sides))[trunk[-1].name]
    pooling: Pooling | None = "average" if pooled else None
    behind: list[StoredOperation] = []
    for operation in _steps(graph, end):
        kind = operation.kind
        if kind in ROUNDING or (pooling and kind in NOTHING_AT_ONE_POSITION):
            continue
        if pooling:
            behind.append(operation)
        elif kind == "flatten":
            pooling = "none"
        elif kind in ("mean", "max"):
            pooling = "average" if kind == "mean" else "max"
        elif kind == "average_pool" and (sides is None or operation.window == last_map):
            pooling = "average"
        else:
            raise _not_taken(checkpoint, operation)
    found = _layers(mapping, network, checkpoint, behind)
    table = replace_struct(mapping.network, predictions="softmax")
    if found and found[-1].layer.activation == "sigmoid":
        found.pop()
        table = replace_struct(table, predictions="sigmoid")
    if pooling:
        table = replace_struct(table, pooling=pooling, flat=list(last_map) if pooling == "none" else None)
    mapping = replace_struct(mapping, network=table)
    if not found or (len(found) == 1 and found[0].own):
        return mapping
    dense = [number for number, one in enumerate(found) if one.layer.kind == "dense"]
    named = any(one.own for one in found) and checkpoint.format != "tflite"  # whose names are numbers
    if not dense or named:
        listed = ", ".join(one.layer.activation or one.layer.kind for one in found)
        raise NotTheNetworkError(
            f"{checkpoint.given}: the layers behind its pooling ({listed}) are not those of a classifier that can be "
            "ported; to port the network without them use",
            option=Option("backbone"),
        )
    return _with_tail(mapping, found, dense[-1], checkpoint)


def _layers(
    mapping: VariantMapping, network: Network, checkpoint: Checkpoint, behind: list[StoredOperation]
) -> list[_Layer]:
    """The layers that the operations ``behind`` the pooling are, without the network's own embedding."""
    known = {
        want.source: want.target.rpartition(".")[0]
        for want in expected_variables(mapping, network, classes=1)
        if want.target == "classifier.weight"
        or (want.source in checkpoint and checkpoint[want.source].shape == want.shape)
    }
    found: list[_Layer] = []
    embedded = softmax = False  # the operation before was the embedding's; there was a softmax
    for operation in behind:
        kind, weights = operation.kind, dict(operation.weights)
        if softmax:  # its class probabilities are computed with
            raise _not_taken(checkpoint, operation)
        if kind in WITH_WEIGHTS and known.get(weights["weight"]) == "conv_head" and not found:
            embedded = True
        elif kind in ("convolution", "dense") and weights["weight"] in checkpoint:
            shape = checkpoint[weights["weight"]].shape
            out = shape[0] if checkpoint.format == "tflite" else shape[-1]
            found.append(_Layer(TailLayer("dense", out=out), weights, known.get(weights["weight"]) == "classifier"))
        elif kind == "bias" and (embedded or (found and found[-1].layer.kind == "dense")):
            if not embedded:
                found[-1].weights.update(bias=weights["bias"])
        elif kind == "batch_norm" and {"mean", "variance"} <= weights.keys():
            decay = None if operation.decay == network.decay else operation.decay
            found.append(_Layer(TailLayer("batch_norm", epsilon=operation.epsilon, decay=decay), weights))
        elif kind == "softmax" and found:
            softmax = True
        elif kind in TAIL_ACTIVATIONS:
            # TensorFlow computes with float32's slope, in float64 as well
            slope = as_float32(operation.slope) if kind == "leaky_relu" else None
            if (embedded and kind != network.embedding_activation) or (slope is not None and not 0 < slope <= 1):
                raise _not_taken(checkpoint, operation)
            if not embedded:
                found.append(_Layer(TailLayer("activation", activation=kind, slope=slope), {}))
            embedded = False
        else:
            raise _not_taken(checkpoint, operation)
    return found


def _with_tail(mapping: VariantMapping, found: list[_Layer], last: int, checkpoint: Checkpoint) -> VariantMapping:
    """``mapping`` with the layers ``found``; layer ``last`` gives the classes."""
    for kind in dict.fromkeys(one.layer.kind for one in found if one.layer.kind != "activation"):
        if kind not in mapping.rules:
            raise MappingError(
                f"{checkpoint.given}: has {kind} layers behind its pooling, and the mapping of {mapping.variant} "
                f"has no rules.{kind}; copy this section from the installed slim.yaml"
            )
    tail = [replace_struct(one.layer, out=None) if number == last else one.layer for number, one in enumerate(found)]
    mapping = replace_struct(mapping, network=replace_struct(mapping.network, tail=tail))
    if checkpoint.format == "tflite":  # names are numbers, in the order of layers
        return mapping
    every = {want.target: want for want in expected_variables(mapping, build_network(mapping), classes=1)}
    naming, layouts = Naming({}, {}), dict[str, Layout]()
    for number, (layer, weights, _) in enumerate(found):
        at = tail_layer(number, len(found))
        naming.add(every, weights, at, at if layer.kind == "batch_norm" else "")
        want = every.get(f"{at}.weight") if layer.kind == "dense" else None
        if want and len(checkpoint[weights["weight"]].shape) == 4:
            layouts[want.local] = "dense"  # a convolution of one position
    return replace_struct(
        mapping,
        variables=mapping.variables | naming.variables,
        constants=mapping.constants | naming.constants,
        layouts=mapping.layouts | layouts,
    )


def _steps(graph: StoredGraph, value: str) -> Iterator[StoredOperation]:
    """The operations behind ``value``, one after the other, up to the first value that is not used once.

    Operations that only choose a class (argmax) are skipped. Behind an output of the file, only activations and what
    leads to further layers are part of the classifier.
    """
    lead_on: set[str] = set()  # to layers
    for one in reversed(graph.in_order):
        if one.kind in WITH_WEIGHTS or any(user.name in lead_on for user in graph.users.get(one.name, [])):
            lead_on.add(one.name)
    for _ in graph.operations:  # at most: operations may go in a circle
        users = [one for one in graph.users.get(value, []) if one.kind not in DECISIONS]
        if value in graph.outputs:
            users = [one for one in users if one.kind in ACTIVATIONS or one.name in lead_on]
        if len(users) != 1:
            break
        yield users[0]
        value = users[0].name
    if len(users) > 1:
        yield StoredOperation(f"{users[0].name} and {users[1].name}", "two operations on one value", (value,))


def _not_taken(checkpoint: Checkpoint, operation: StoredOperation) -> NotTheNetworkError:
    return NotTheNetworkError(
        f"{checkpoint.given}: {operation.name} ({operation.kind}) behind the trunk is no layer of a classifier that "
        "can be ported; to port the network without what follows it use",
        option=Option("backbone"),
    )
