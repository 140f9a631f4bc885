"""Original TensorFlow graphs as references: the frozen ``.pb``, and the ``.meta`` with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.loaders import Checkpoint
from porter.mapping.network import Network
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Endpoints, Reference

RECENT = 3  # endpoints that the next one may need: a block's input, its expansion, its depthwise output


def frozen_graph(path: Path, network: Network, scope: str) -> Reference:
    """The frozen graph ``path`` run by TensorFlow. Raises ParityError when it is not this network's."""
    tf = tensorflow()
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(definition, name="")
    except Exception as error:  # TensorFlow raises protobuf's and its own kinds
        raise ParityError(f"{path}: not a frozen graph that TensorFlow can load ({error})") from error
    return _reference(f"frozen graph ({path.name})", str(path), graph, _session(tf, graph), network, scope)


def meta_graph(checkpoint: Checkpoint, network: Network, scope: str) -> Reference:
    """The ``.meta`` graph beside ``checkpoint``, its variables restored by TensorFlow from the same weights.

    Raises ParityError when the graph is one for training, or another network's.
    """
    tf = tensorflow()
    path = checkpoint.path.with_name(checkpoint.path.name + ".meta")
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.compat.v1.train.import_meta_graph(str(path))
            variables = {v.op.name: v for v in tf.compat.v1.global_variables()}
            stored = {v.stored_as: variables[name] for name, v in checkpoint.items() if name in variables}
            session = _session(tf, graph)
            tf.compat.v1.train.Saver(stored).restore(session, str(checkpoint.path))
    except Exception as error:
        raise ParityError(f"{path}: not a graph that TensorFlow can restore ({error})") from error
    norms = [op for op in graph.get_operations() if op.type.startswith("FusedBatchNorm")]
    if any(op.get_attr("is_training") for op in norms):
        raise ParityError(f"{path}: is the graph for training (batch statistics); use --reference tf.nn")
    return _reference(f"meta graph ({path.name})", str(path), graph, session, network, scope)


def _session(tf: Any, graph: Any) -> Any:
    """A session that runs the graph as it is: optimising it anew for every fetch would take longest of all."""
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    return tf.compat.v1.Session(graph=graph, config=config)


def _reference(name: str, path: str, graph: Any, session: Any, network: Network, scope: str) -> Reference:
    operations = {operation.name: operation for operation in graph.get_operations()}
    inputs = [op for op in operations.values() if op.type == "Placeholder" and op.outputs[0].shape.rank == 4]
    if len(inputs) != 1:
        raise ParityError(f"{path}: {len(inputs)} image inputs in the graph, expected one; use --reference tf.nn")
    image = inputs[0].outputs[0]
    tensors = {}
    for endpoint, candidates in _endpoint_operations(network, scope):
        operation = next((operations[c] for c in candidates if c in operations), None)
        if operation is None:
            raise ParityError(f"{path}: no operation for endpoint {endpoint} (looked for {', '.join(candidates)})")
        tensors[endpoint] = operation.outputs[0]

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        # Each endpoint from those just before it, so that one layer is computed (and held) at a time
        recent: dict[Any, np.ndarray] = {}
        for name in names:
            if name in tensors:
                tensor = tensors[name]
                if tensor not in recent:
                    values = session.run(tensor, {image: images, **recent})
                    recent = {**dict(list(recent.items())[-RECENT:]), tensor: values}
                yield name, recent[tensor]

    height, width = image.shape[1:3]
    return Reference(name, run, size=(int(height), int(width)))


def _endpoint_operations(network: Network, scope: str) -> Iterable[tuple[str, list[str]]]:
    """Endpoint -> names of the operation that gives it, first match counts.

    Freezing strips the identities that slim names after endpoints, so what they name comes second.
    """

    def activated(prefix: str) -> list[str]:
        return [f"{prefix}/hard_swish/mul_1", f"{prefix}/Relu"]

    after = network.endpoint_after_blocks
    yield "layer_1", activated(f"{scope}/Conv")
    for block in network.blocks:
        at = f"{scope}/{block.scope}"
        if block.expands:
            yield f"{block.endpoint}/expansion_output", [f"{at}/expansion_output", *activated(f"{at}/expand")]
        if block.depthwise:
            yield f"{block.endpoint}/depthwise_output", [f"{at}/depthwise_output", *activated(f"{at}/depthwise")]
        output = [f"{at}/output", f"{at}/add", f"{at}/project/BatchNorm/FusedBatchNormV3"]
        yield f"{block.endpoint}/output", output
        yield block.endpoint, output
    yield after(0), activated(f"{scope}/Conv_1")
    if network.pools_in_layers:
        yield after(1), [f"{scope}/AvgPool2D/AvgPool"]
    if network.head:
        yield after(2), activated(f"{scope}/Conv_2")
    yield "global_pool", [f"{scope}/Logits/AvgPool2D"]
    yield "Logits", [f"{scope}/Logits/output", f"{scope}/Logits/Squeeze"]
    yield "Predictions", [f"{scope}/Predictions/Reshape_1", f"{scope}/Predictions/Softmax"]
