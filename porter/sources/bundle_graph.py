"""The graph beside a V2 checkpoint: the ``.meta`` of a training run, or a SavedModel's ``saved_model.pb``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from porter.errors import CheckpointError
from porter.sources import protos
from porter.sources.graphdef import variable_of
from porter.sources.graphdef_operations import stored_graph
from porter.sources.locate import SAVED_MODEL
from porter.sources.stored_graph import StoredGraph
from porter.sources.variable import read_file

SIGNATURE = b"serving_default"
MOST_SIGNATURES = 8  # that are read where none has that name


def beside_bundle(prefix: Path, names: Mapping[str, str]) -> Callable[[], StoredGraph] | None:
    """How to read the graph of the checkpoint ``prefix``; None where it has none.

    ``names``: key in the checkpoint -> variable, where keys are not the names.
    """
    meta = prefix.with_name(prefix.name + ".meta")
    path = saved_model_of(prefix) or (meta if meta.is_file() else None)
    return partial(read_graph, path, names) if path else None


def saved_model_of(prefix: Path) -> Path | None:
    """The ``saved_model.pb`` to which the checkpoint ``prefix`` belongs, if there is one."""
    folder = prefix.absolute().parent  # of a bare name, in the folder one is in
    path = folder.parent / SAVED_MODEL
    return path if folder.name == "variables" and path.is_file() else None


def read_graph(path: Path, names: Mapping[str, str]) -> StoredGraph:
    """The operations of a ``.meta`` or ``saved_model.pb``. Raises CheckpointError."""
    data = read_file(path)
    for known, graph in list(_latest):
        if known == (data, names):
            return graph
    graph = _parsed(path, data, names)
    _latest.append(((data, names), graph))
    return graph


# The checkpoints of one training run have the same graph
_latest: deque[tuple[tuple[bytes, Mapping[str, str]], StoredGraph]] = deque(maxlen=1)


def _parsed(path: Path, data: bytes, names: Mapping[str, str]) -> StoredGraph:
    if path.suffix == ".meta":
        meta = protos.parse(protos.MetaGraphDef, data, str(path), "the graph")
    else:
        graphs = protos.parse(protos.SavedModel, data, str(path), "the SavedModel").meta_graphs
        if not graphs:
            raise CheckpointError(f"{path}: a SavedModel without a graph; fetch it again")
        meta = min(graphs, key=_in_training)
    signatures = {named.key: named.value for named in meta.signature_def if not named.key.startswith(b"__")}
    chosen = [signatures[SIGNATURE]] if SIGNATURE in signatures else [*signatures.values()][:MOST_SIGNATURES]
    outputs = [sorted(named.value.name.decode(errors="replace") for named in one.outputs) for one in chosen]
    by_node = {node: names[key] for node, key in _restored(meta) if key in names}

    def read(outputs: Sequence[str]) -> StoredGraph:
        return stored_graph(meta.graph_def, str(path), partial(variable_of, path), outputs, by_node)

    return max(map(read, outputs or [[]]), key=_variables)  # a signature for features uses fewer than one for classes


def _in_training(meta: Any) -> tuple[bool, bool]:
    """A key to sort graphs by: those with the tag ``serve`` first, those with ``train`` last. Hub's have no tag."""
    tags = meta.meta_info_def.tags
    return b"train" in tags, b"serve" not in tags


def _variables(graph: StoredGraph) -> int:
    return len({name for operation in graph.operations.values() for name in operation.weights.values()})


def _restored(meta: Any) -> Iterator[tuple[str, str]]:
    """The node of each variable and its key, as the function that restores an object-based checkpoint has them."""
    operation = meta.saver_def.restore_op_name
    call = next((node for node in meta.graph_def.node if node.name == operation), None)
    if call is None:
        return
    called = next((attribute.value.func.name for attribute in call.attr if attribute.key == b"f"), b"")
    for function in meta.graph_def.library.function:
        if function.signature.name != called:
            continue
        arguments = dict(zip((arg.name for arg in function.signature.input_arg), call.input, strict=False))
        nodes = {node.name: node for node in function.node_def}
        for node in function.node_def:
            if node.op != b"AssignVariableOp" or len(node.input) < 2 or node.input[0] not in arguments:
                continue
            value = nodes.get(node.input[1].split(b":")[0])
            restored = (
                value.input[0].split(b":") if value is not None and value.op == b"Identity" and value.input else []
            )
            keys = _keys(nodes, restored[0]) if len(restored) == 3 and restored[2].isdigit() else ()
            number = int(restored[2][:6]) if keys else 0
            if number < len(keys):
                yield arguments[node.input[0]].decode(errors="replace"), keys[number].decode(errors="replace")


def _keys(nodes: Mapping[bytes, Any], name: bytes) -> Any:
    """The strings that name what the RestoreV2 node ``name`` reads."""
    restore = nodes.get(name)
    if restore is None or restore.op != b"RestoreV2" or len(restore.input) < 2:
        return ()
    constant = nodes.get(restore.input[1].split(b":")[0])
    attributes = constant.attr if constant is not None and constant.op == b"Const" else ()
    return next((attribute.value.tensor.string_val for attribute in attributes if attribute.key == b"value"), ())
