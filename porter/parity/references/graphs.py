"""Original TensorFlow graphs as references, in float64 and float32: a frozen ``.pb``, or a ``.meta`` or SavedModel with
the values of its variables.

The graph is cut at the first convolution, so that it takes images of any size. What is before that, from 8-bit pixels
on, runs by itself, and must be the port's preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.network.network import Network
from porter.network.node import Size
from porter.network.nodes import CLASS_ENDPOINTS, LOGITS, endpoint_names, nodes
from porter.parity.references.graph_float64 import in_float64, pooling_everything
from porter.parity.references.graph_guard import FLOAT, check_operation, constant, guarded, node_of
from porter.parity.references.live_tensorflow import reason, stored_values, tensorflow
from porter.parity.references.reference import (
    Endpoints,
    Reference,
    Values,
    check_preprocessing,
    for_file,
    noise_between,
    told_pixels,
)
from porter.port import Port
from porter.sources.checkpoint import open_checkpoint
from porter.sources.stored_graph import WITH_WEIGHTS, StoredGraph

SHORT_FLOATS = (14, 19)  # DT_BFLOAT16 and DT_HALF of tensorflow/core/framework/types.proto
LOGITS_ENDPOINT, PREDICTIONS = CLASS_ENDPOINTS
POOLING = ("mean", "max", "average_pool", "max_pool")  # by a window that is the map


class Given(NamedTuple):
    """The GraphDef ``definition`` of a file, with the ``values`` of variables by node.

    ``stored`` are its operations. ``size`` is the only one for which it computes SAME padding.
    """

    name: str
    path: str
    definition: Any
    values: Mapping[str, np.ndarray]
    stored: StoredGraph
    size: Size | None = None


def frozen_graph(path: Path, port: Port) -> Reference:
    """The frozen graph ``path``. Raises ParityError if it is not the port's network, or not harmless."""
    definition = _parse(path, tensorflow().compat.v1.GraphDef())
    own = path == port.checkpoint.path
    stored = (port.checkpoint if own else open_checkpoint(path)).graph
    assert stored is not None
    padded = own and any(one.kind == "pad" for one in stored.operations.values())
    size = port.mapping.input.sides if padded else None  # Keras's zeros fit images of one size
    given = Given(f"frozen graph ({path.name})", str(path), definition, {}, stored, size)
    return _reference(given, port)


def meta_graph(port: Port) -> Reference:
    """The ``.meta`` graph beside the port's checkpoint, its variables replaced by the port's values.

    Raises ParityError if the graph is for training, is another network, or is not harmless.
    """
    checkpoint = port.checkpoint
    path = checkpoint.path.with_name(checkpoint.path.name + ".meta")
    definition = _parse(path, tensorflow().compat.v1.MetaGraphDef()).graph_def
    assert checkpoint.graph is not None
    stored = stored_values(checkpoint)
    values = {name: stored(variable.name) for name, variable in checkpoint.items() if variable.dtype == "float32"}
    return _reference(Given(f"meta graph ({path.name})", str(path), definition, values, checkpoint.graph), port)


def saved_model(port: Port) -> Reference:
    """The SavedModel that the port's checkpoint belongs to, the bodies of its functions in place of their calls.

    Raises ParityError if it is not the port's network, or not harmless.
    """
    checkpoint = port.checkpoint
    path, graph = checkpoint.saved_model, checkpoint.graph
    if path is None or graph is None or graph.program is None:
        raise ParityError(f"{checkpoint.given}: no SavedModel's checkpoint; use the reference tf.nn")
    program = graph.program()
    definition = tensorflow().compat.v1.GraphDef()
    for node in program.nodes:
        made = definition.node.add(name=node.name, op=node.op, input=node.inputs)
        for attribute in node.attributes:
            made.attr[attribute.key.decode(errors="replace")].ParseFromString(attribute.value.SerializeToString())
        if made.op == "Const":
            check_operation(made, str(path))  # before its values are made
        _in_float32(made)
    values = {
        node: checkpoint[name].read().astype(np.float64 if checkpoint[name].dtype == "float64" else np.float32)
        for node, name in program.variables.items()
        if name in checkpoint
    }
    name, size = f"SavedModel ({path.parent.name})", port.mapping.input.sides
    return _reference(Given(name, str(path), definition, values, graph, size), port)


def _in_float32(node: Any) -> None:
    """Change the 16-bit floats of ``node`` (Keras's mixed precision) to float32: their rounding is not compared."""
    if node.op == "Const" and node.attr["dtype"].type in SHORT_FLOATS:
        constant(node, tensorflow().make_ndarray(node.attr["value"].tensor).astype(np.float32))
    for value in node.attr.values():
        if value.type in SHORT_FLOATS:
            value.type = FLOAT


def _parse(path: Path, proto: Any) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ParityError(f"{path}: not a graph that TensorFlow can load ({error})") from error
    return proto


def _reference(given: Given, port: Port) -> Reference:
    name, path, definition, values, stored, size = given
    network, scope = port.network, port.mapping.scope
    present = {node.name for node in definition.node}
    sources = {step.target: step.source for step in port.plan.steps}
    operations = {name: one for name, one in places(port, stored, sources).items() if one in present}
    if not operations:
        raise ParityError(f"{path}: holds no endpoint of {port.mapping.variant} under {scope}; use the reference tf.nn")
    cut = _input_of_stem(given, port.plan.steps[0].source)
    graph = guarded(definition, operations.values(), cut, path, values)
    size = size or _fixed_size(definition, network, scope)
    preprocess = _preprocessing(given, port, cut, size)
    kinds = {one.kind: one.name for one in stored.operations.values()} if network.head is None else {}
    pooling = kinds.get("average_pool", "")  # a segmenter's window is its own
    sessions: dict[tuple[int, ...], dict[str, Any]] = {}

    def sessions_for(size: tuple[int, ...]) -> dict[str, Any]:
        window = tuple(-(-side // network.total_stride) for side in size)
        if window not in sessions:
            fitting = pooling_everything(graph, pooling, window)
            sessions.clear()  # keep those of one size only
            sessions[window] = {"float32": _session(fitting, path), "float64": _session(in_float64(fitting), path)}
        return sessions[window]

    def compute(images: np.ndarray, dtype: str, names: Sequence[str]) -> list[np.ndarray]:
        fetches = [f"{operations[name]}:0" for name in names]
        try:
            session = sessions_for(images.shape[1:3])[dtype]
            found = session.run(fetches, {f"{node_of(cut)}:0": images.astype(dtype)})
            return [
                values.reshape(len(values), -1) if name in CLASS_ENDPOINTS else values
                for name, values in zip(names, found, strict=True)
            ]
        except ParityError:
            raise
        except Exception as error:  # TensorFlow has many exceptions
            raise ParityError(f"{path}: TensorFlow cannot run it at {images.shape[1:3]} ({reason(error)})") from error

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        have = [name for name in names if name in operations]
        images = prepare(images)
        both = compute(images, "float64", have), compute(images, "float32", have)
        for name, double, single in zip(have, *both, strict=True):
            yield name, Values(double, noise_between(single, double))

    def prepare(images: np.ndarray) -> np.ndarray:
        if preprocess is None:
            return images
        prepared = preprocess(images)
        check_preprocessing(prepared, images, port, path)
        return prepared

    missing = tuple(name for name in endpoint_names(network, port.classes) if name not in operations)
    takes = told_pixels(port.white) if preprocess else ""
    return Reference(name, run, prepare=prepare, missing=missing, size=size, takes=takes)


def _preprocessing(given: Given, port: Port, cut: str, size: Size | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """What the graph makes of images in [-1, 1] as 8-bit pixels.

    None where it cannot be run, takes no pixels, or pads or resizes images, which may have any ``size``.
    """
    definition, stored, white = given.definition, given.stored, port.white
    stem = stored.by_weight.get(port.plan.steps[0].source)
    before = stored.path(stem) if stem else ()
    if white is None or not before or before[0].kind != "image":
        return None
    if size is None and any(one.kind.lower() in ("pad", "resize") for one in before):
        return None
    bare = type(definition)()  # control edges are not copied, and a check of the image's size needs nothing else
    for node in definition.node:
        bare.node.add().CopyFrom(node)
        del bare.node[-1].input[:]
        bare.node[-1].input.extend(source for source in node.input if not source.startswith("^"))
    try:
        graph = guarded(bare, [node_of(cut)], before[0].name, given.path, given.values)
    except ParityError:
        return None  # an operation that is not run: a decoder of files, say
    [image] = (node for node in graph.node if node.op == "Placeholder")
    dtype = tensorflow().dtypes.as_dtype(image.attr["dtype"].type).as_numpy_dtype
    session = _session(graph, given.path)

    def preprocess(images: np.ndarray) -> np.ndarray:
        pixels = for_file(images, white).astype(dtype)
        rows = [session.run(f"{node_of(cut)}:0", {f"{image.name}:0": one[None]}) for one in pixels]
        return np.concatenate(rows)

    return preprocess


def _fixed_size(definition: Any, network: Network, scope: str) -> Size | None:
    """The image size for which a segmentation graph's resizing is written; None if it is not fixed."""
    if network.head is None:
        return None
    nodes = {node.name: node for node in definition.node}
    parent = scope.rpartition("/")[0]
    resize = nodes.get(f"{parent}/ResizeBilinear" if parent else "ResizeBilinear")
    size = nodes.get(node_of(resize.input[1])) if resize is not None and len(resize.input) > 1 else None
    if size is None or size.op != "Const":
        return None
    height, width = (int(side) for side in tensorflow().make_ndarray(size.attr["value"].tensor).reshape(-1)[:2])
    stride = network.total_stride
    return (height - 1) * stride + 1, (width - 1) * stride + 1


def _session(graph: Any, path: str) -> Any:
    """A session without graph optimisation, which is slow and would change what is measured."""
    tf = tensorflow()
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    loaded = tf.Graph()
    try:
        with loaded.as_default():
            tf.import_graph_def(graph, name="")
    except Exception as error:  # TensorFlow raises protobuf's exceptions and its own
        raise ParityError(f"{path}: not a graph that TensorFlow can load ({error})") from error
    return tf.compat.v1.Session(graph=loaded, config=config)


def _input_of_stem(given: Given, weights: str) -> str:
    """The name of the first convolution's input tensor; ``weights`` is the variable that it uses."""
    definition, stem = given.definition, given.stored.by_weight.get(weights)
    users = [node for node in definition.node if stem and node.name == stem.name]
    if len(users) != 1:
        raise ParityError(
            f"{given.path}: {len(users)} convolutions use {weights}, expected one; use the reference tf.nn"
        )
    source: str = users[0].input[0]
    before = next((node for node in definition.node if node.name == node_of(source)), None)
    if before is not None and before.op == "Pad" and users[0].attr["padding"].s == b"VALID":  # together they are SAME
        source = before.input[0]
    return source


def places(port: Port, graph: StoredGraph, sources: Mapping[str, str]) -> dict[str, str]:
    """Endpoint -> the operation of ``graph`` that gives it; ``sources`` are variables by entry."""
    found: dict[str, str] = {}
    values: dict[str, str] = {}  # of nodes
    value = ""
    for node in nodes(port.network, port.classes):
        if node.layer:
            operation = graph.by_weight.get(sources.get(f"{node.layer}.weight", ""))
            if operation is None:
                continue
            behind = graph.behind(operation)
            if node.name == LOGITS or not node.activation:
                behind = [one for one in behind if one.kind in ("bias", "batch_norm")]
            value = (behind or [operation])[-1].name
        elif node.endpoints and node.operation in ("add", "mean", "max"):
            users = graph.users.get(values.get(node.inputs[0], ""), [])
            if node.operation == "add":
                names = [one.name for one in users if one.kind == "add"]
            else:  # an LR-ASPP has a pooling of the same map, outside the scope
                names = [one.name for one in users if one.kind in POOLING and one.name.startswith(port.mapping.scope)]
            value = names[0] if names else ""
        elif node.operation in ("batch_norm", "softmax", "mean", "max", "flatten", "multiply"):
            continue
        values[node.name] = value
        if value and ":" not in value:
            found |= dict.fromkeys(node.endpoints, value)
    for name in graph.outputs if port.classes and port.network.head is None else ():
        last = graph.operations[name]
        while last.kind == "flatten" and last.inputs[0] in graph.operations:
            last = graph.operations[last.inputs[0]]
        if last.kind in ("softmax", "sigmoid"):
            found[PREDICTIONS] = name
        elif last.kind in (*WITH_WEIGHTS, "bias"):
            found[LOGITS_ENDPOINT] = name
    return found
