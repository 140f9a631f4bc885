"""A network with its weights, float32 and batch norms folded in: what exported graphs are written from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from porter.errors import ArtifactError
from porter.mapping.apply import fold_batch_norm
from porter.network.network import TIMM_GATE, Network
from porter.network.node import Node, behind_gates, needed
from porter.network.nodes import is_weight, nodes, outputs, state_dict_shapes

if TYPE_CHECKING:
    import numpy as np


class Constants(NamedTuple):
    """Of one node: ``weight`` (OIHW, OI of a dense one, O of a batch norm) and ``bias`` (O,)."""

    weight: np.ndarray
    bias: np.ndarray


class Program(NamedTuple):
    """Nodes in the order of computation, on (N, ``channels``, H, W) images, and the weights of those that have any.

    ``outputs`` are values. The gate is relu6(x + 3) / 6 whatever the network's: the rest of its slope is in the weights
    behind it. ``features`` is true where the outputs are a pyramid of maps.
    """

    network: Network
    nodes: list[Node]
    weights: Mapping[str, Constants]
    outputs: tuple[str, ...]
    channels: int
    features: bool = False

    @property
    def endpoints(self) -> dict[str, str]:
        """The value of each of TensorFlow's endpoints."""
        return {endpoint: node.name for node in self.nodes for endpoint in node.endpoints}


def program(
    network: Network, classes: int, arrays: Mapping[str, np.ndarray], endpoints: Sequence[str] | None = None
) -> Program:
    """The network with the weights ``arrays``, a state dict; or the part that computes ``endpoints``, feature maps.

    With 0 ``classes`` a classifier's output is the embedding. Raises ArtifactError where the entries are not those of
    the network.
    """
    found = nodes(network, classes)
    values = outputs(network, classes)
    if endpoints is not None:
        by_endpoint = {endpoint: node.name for node in found for endpoint in node.endpoints}
        values = tuple(by_endpoint[endpoint] for endpoint in endpoints)
    found = needed(found, values)
    owners = {node.layer for node in found} | {node.norm for node in found}
    _check_entries(state_dict_shapes(network, classes), owners, arrays)
    factor, folding = network.gate / TIMM_GATE, behind_gates(found)
    weights = {
        node.name: _folded(node, network, arrays, factor if node.layer in folding else 1.0)
        for node in found
        if node.layer or node.operation == "batch_norm"
    }
    found = _merged(found, weights, values)
    rounded = {name: Constants(*(part.astype("float32") for part in own)) for name, own in weights.items()}
    return Program(network, found, rounded, values, network.channels, features=endpoints is not None)


def _merged(found: Sequence[Node], weights: dict[str, Constants], values: Sequence[str]) -> list[Node]:
    """Nodes without the batch norms behind or before a dense layer, whose ``weights`` have them then."""
    users = Counter((*values, *(name for node in found for name in node.inputs)))
    made: list[Node] = []
    for node in found:
        before = made[-1] if made else node
        single = node.inputs == (before.name,) and users[before.name] == 1 and before.activation is None
        kinds = before.operation, node.operation
        if single and kinds in (("dense", "batch_norm"), ("batch_norm", "dense")):
            first, second = weights.pop(before.name), weights[node.name]
            if node.operation == "dense":
                weight, bias = second.weight * first.weight, second.weight @ first.bias + second.bias
                node = node._replace(inputs=before.inputs)
            else:
                weight, bias = second.weight[:, None] * first.weight, second.weight * first.bias + second.bias
                node = before._replace(name=node.name, endpoints=node.endpoints, module=node.module)
            made[-1], weights[node.name] = node, Constants(weight, bias)
        else:
            made.append(node)
    return made


def _folded(node: Node, network: Network, arrays: Mapping[str, np.ndarray], scale: float) -> Constants:
    """Weight (times ``scale``) and bias with the batch norm in them, in float64."""
    import numpy as np

    owners = (node.layer, node.norm)
    own = {name: arrays[name].astype("float64") for name in arrays if name.rpartition(".")[0] in owners}
    if node.operation == "batch_norm":
        own["ones.weight"] = np.ones(node.shape)
        return Constants(*fold_batch_norm(own, "ones", node.norm, node.epsilon))
    weight = own[f"{node.layer}.weight"] = own[f"{node.layer}.weight"] * scale
    if not node.norm or network.bn_folded:
        bias = own[f"{node.layer}.bias"]
    else:
        weight, bias = fold_batch_norm(own, node.layer, node.norm, node.epsilon)
    if node.operation == "dense":
        weight = weight.reshape(weight.shape[:2])
    return Constants(weight, bias)


def _check_entries(expected: Mapping[str, tuple[int, ...]], owners: set[str], arrays: Mapping[str, np.ndarray]) -> None:
    for name, shape in expected.items():
        if name.rpartition(".")[0] not in owners:
            continue
        if name not in arrays and is_weight(name):
            raise ArtifactError(f"entry {name}: is missing; exports are of MobileNetV3's own layers")
        if name in arrays and arrays[name].shape != shape:
            raise ArtifactError(f"entry {name}: shape {list(arrays[name].shape)}, the network has {list(shape)}")
