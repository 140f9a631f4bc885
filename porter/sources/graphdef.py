"""Reader of frozen graphs (a binary GraphDef): the constants that feed operators as their weights."""

from __future__ import annotations

from pathlib import Path

from porter.errors import CheckpointError
from porter.sources import dtypes, protos
from porter.sources.bounds import check_shape
from porter.sources.content import recognised
from porter.sources.dtypes import tensor_values
from porter.sources.graphdef_operations import MISSING, GraphNode, stored_graph
from porter.sources.variable import Contents, Variable

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
    constants: dict[str, Variable] = {}

    def constant(node: GraphNode) -> Variable:
        return constants.setdefault(node.name, variable_of(path, node))

    stated = stored_graph(graph, str(path), constant)
    used = [name for operation in stated.operations.values() for name in operation.weights.values()]
    variables = {name: constants[name] for name in used if name in constants}
    if not variables:
        raise CheckpointError(f"{path}: no weights in it: not a frozen graph (variables are not yet constants)?")
    return Contents(variables, [path], graph=lambda: stated)


def variable_of(path: Path, node: GraphNode) -> Variable:
    """The value of a Const node of the graph in ``path``. Raises CheckpointError."""
    what, name, value = f"{path}: tensor {node.name}", node.name, node.attribute(b"value")
    if value is MISSING:
        raise CheckpointError(f"{what}: a constant without a value; the graph is damaged")
    proto, dtype = value.tensor, dtypes.name_of(value.tensor.dtype)
    shape = check_shape(protos.shape_of(proto.tensor_shape), what)
    return Variable(name, shape, dtype, name, str(path), lambda: tensor_values(proto, shape, dtype, what, zeros=True))
