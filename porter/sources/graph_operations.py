"""Settings in a stored graph besides its weights: pooling windows, batch norm epsilons."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from porter.errors import CheckpointError
from porter.sources import protos
from porter.sources.dtypes import as_decimal

MOST_SIDE = 1 << 12  # of a pooling window; DeepLab's largest is 65


class Pooling(NamedTuple):
    """An average pooling with VALID padding: height and width of its window and of its strides."""

    window: tuple[int, int]
    stride: tuple[int, int]


class GraphOperations(NamedTuple):
    """By name of the operation. Epsilons are the decimals that were rounded to float32."""

    poolings: dict[str, Pooling]
    epsilons: dict[str, float]


def graph_operations(path: Path) -> GraphOperations:
    """Read a frozen graph, or the ``.meta`` of a checkpoint. Raises CheckpointError if it is damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if path.suffix == ".meta":
        graph = protos.parse(protos.MetaGraphDef, data, str(path), "the graph").graph_def
    else:
        graph = protos.parse(protos.GraphDef, data, str(path), "the graph")
    poolings, epsilons = {}, {}
    for node in graph.node:
        name, values = node.name.decode(errors="replace"), {attr.key: attr.value for attr in node.attr}
        if node.op == b"AvgPool":
            window, stride = (_sides(values, key, f"{path}: {name}") for key in (b"ksize", b"strides"))
            poolings[name] = Pooling(window, stride)
        elif node.op.startswith(b"FusedBatchNorm") and b"epsilon" in values:
            epsilons[name] = as_decimal(values[b"epsilon"].f)
    return GraphOperations(poolings, epsilons)


def _sides(values: dict[bytes, Any], key: bytes, what: str) -> tuple[int, int]:
    found = list(values[key].list.i) if key in values else []
    if len(found) != 4 or not all(1 <= side <= MOST_SIDE for side in found):
        raise CheckpointError(f"{what}: pools with {key.decode()} {found[:8]}; the graph is damaged")
    return found[1], found[2]
