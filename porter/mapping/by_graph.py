"""Finding the network in a file by its graph: the order and the shapes of its layers, whatever their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from porter.mapping.files import list_backbones, list_variants, load_variant
from porter.mapping.rules import Expected, expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.network import build_network
from porter.network.node import Shape
from porter.network.nodes import nodes
from porter.sources import Checkpoint
from porter.sources.stored_graph import StoredGraph, StoredOperation

# Entry of a batch norm -> its role in a stored graph
BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}


class Naming(NamedTuple):
    """A file's names of ``variables``, and ``constants`` for what it leaves out; both as in a mapping."""

    variables: dict[str, str]
    constants: dict[str, float]

    def add(self, every: Mapping[str, Expected], weights: Mapping[str, str], layer: str, norm: str = "") -> None:
        """Add those of ``layer`` and the batch norm ``norm``: ``weights`` by role, of ``every`` variable by entry."""
        roles = {f"{layer}.weight": "weight", f"{layer}.bias": "bias"}
        roles |= {f"{norm}.{part}": role for part, role in BATCH_NORM.items() if norm}
        for entry, role in roles.items():
            if entry in every and role in weights:
                self.variables[every[entry].local] = weights[role]
            elif entry in every and role in ("bias", "beta", "gamma"):
                self.constants[entry] = float(role == "gamma")


def by_graph(checkpoint: Checkpoint, variants: Sequence[str] | None = None) -> Iterator[VariantMapping]:
    """Mappings of ``variants`` (None: all, and backbones) whose layers follow each other in the file's graph.

    Each has the file's names as ``variables``, in the layouts of TensorFlow's graphs. A classifier behind the trunk is
    found where it is slim's or Keras's own; porter.mapping.stated finds others.
    """
    graph = checkpoint.graph
    if graph is None or checkpoint.format == "tflite":  # whose names are numbers in this order
        return
    layers = [layer for layer in graph.layers() if layer.weights["weight"] in checkpoint]
    shapes = [checkpoint[layer.weights["weight"]].shape for layer in layers]
    folded = all(one.kind != "batch_norm" for one in graph.operations.values())
    for variant in variants or (*list_variants(), *list_backbones()):
        mapping = load_variant(variant, "tfjs" if folded else "keras")
        mapping = msgspec.structs.replace(mapping, scope="", top="optional")
        network = build_network(mapping)
        every = {want.target: want for want in expected_variables(mapping, network, classes=1)}
        trunk = [node for node in nodes(replace(network, backbone=True), classes=0) if node.layer]
        wanted = [every[f"{node.layer}.weight"].shape for node in trunk]
        starts = _starts(shapes, wanted)
        if not starts and network.last:  # a backbone may end before the last convolution
            trunk.pop()
            starts = _starts(shapes, wanted[:-1])
        for start in starts:
            naming = Naming({}, {})
            for node, layer in zip(trunk, layers[start:], strict=False):
                naming.add(every, _weights(graph, layer), node.layer, node.norm)
            behind = layers[start + len(wanted) :] if len(trunk) == len(wanted) else []
            for module, layer in zip(("conv_head", "classifier"), behind, strict=False):
                want = every.get(f"{module}.weight")
                shape = checkpoint[layer.weights["weight"]].shape
                if want is None or len(shape) != 4 or shape[:3] != want.shape[:3]:
                    break
                if module == "conv_head" and shape != want.shape:
                    break
                naming.add(every, _weights(graph, layer), module)
            yield msgspec.structs.replace(mapping, variables=naming.variables, constants=naming.constants)


def _starts(shapes: list[Shape], wanted: list[Shape]) -> list[int]:
    """Where ``shapes`` has the sequence ``wanted``."""
    return [at for at in range(len(shapes) - len(wanted) + 1) if shapes[at : at + len(wanted)] == wanted]


def _weights(graph: StoredGraph, layer: StoredOperation) -> dict[str, str]:
    """The variables of ``layer`` and of the bias and batch norm behind it, by role."""
    behind = [one for one in graph.behind(layer) if one.kind in ("bias", "batch_norm")]
    return {role: name for one in (layer, *behind) for role, name in one.weights.items()}
