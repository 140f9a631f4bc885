"""Original TensorFlow graphs as references, in float64 and float32: the frozen ``.pb``, or the ``.meta`` with weights.

The graph is cut at the first convolution, so that it takes images of any size. What is before that, from 8-bit pixels
on, runs by itself, and must be the port's preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.mapping.rules import expected_variables, layer_scopes
from porter.network.network import Network
from porter.network.node import Size
from porter.network.nodes import nodes
from porter.network.spec import ACTIVATIONS
from porter.parity.references.graph_float64 import in_float64, pooling_everything
from porter.parity.references.graph_guard import READS, guarded, node_of
from porter.parity.references.live_tensorflow import stored_values, tensorflow
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


def frozen_graph(path: Path, port: Port) -> Reference:
    """The frozen graph ``path``. Raises ParityError if it is not the port's network, or not harmless."""
    definition = _parse(path, tensorflow().compat.v1.GraphDef())
    return _reference(f"frozen graph ({path.name})", str(path), definition, port, {})


def meta_graph(port: Port) -> Reference:
    """The ``.meta`` graph beside the port's checkpoint, its variables replaced by the port's values.

    Raises ParityError if the graph is for training, is another network, or is not harmless.
    """
    checkpoint = port.checkpoint
    path = checkpoint.path.with_name(checkpoint.path.name + ".meta")
    definition = _parse(path, tensorflow().compat.v1.MetaGraphDef()).graph_def
    stored = stored_values(checkpoint)
    values = {name: stored(variable.name) for name, variable in checkpoint.items() if variable.dtype == "float32"}
    return _reference(f"meta graph ({path.name})", str(path), definition, port, values)


def _parse(path: Path, proto: Any) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ParityError(f"{path}: not a graph that TensorFlow can load ({error})") from error
    return proto


def _reference(name: str, path: str, definition: Any, port: Port, values: dict[str, np.ndarray]) -> Reference:
    network, scope = port.network, port.mapping.scope
    present = {node.name for node in definition.node}
    found = {
        endpoint: next((c for c in candidates if c in present), None)
        for endpoint, candidates in endpoint_operations(port).items()
    }
    operations = {endpoint: operation for endpoint, operation in found.items() if operation}
    if not operations:
        raise ParityError(f"{path}: holds no endpoint of {port.mapping.variant} under {scope}; use the reference tf.nn")
    cut = _input_of_stem(definition, port, path)
    graph = guarded(definition, operations.values(), cut, path, values)
    size = _fixed_size(definition, network, scope)
    preprocess = _preprocessing(definition, port, cut, path, values, size)
    sessions: dict[tuple[int, ...], dict[str, Any]] = {}

    def sessions_for(size: tuple[int, ...]) -> dict[str, Any]:
        window = tuple(-(-side // network.total_stride) for side in size)
        if window not in sessions:
            fitting = pooling_everything(graph, f"{scope}/AvgPool2D/AvgPool", window)
            sessions.clear()  # keep those of one size only
            sessions[window] = {"float32": _session(fitting, path), "float64": _session(in_float64(fitting), path)}
        return sessions[window]

    def compute(images: np.ndarray, dtype: str, names: Sequence[str]) -> list[np.ndarray]:
        fetches = [f"{operations[name]}:0" for name in names]
        try:
            session = sessions_for(images.shape[1:3])[dtype]
            found: list[np.ndarray] = session.run(fetches, {f"{node_of(cut)}:0": images.astype(dtype)})
            return found
        except ParityError:
            raise
        except Exception as error:  # TensorFlow has many exceptions
            reason = str(error).splitlines()[0]
            raise ParityError(f"{path}: TensorFlow cannot run it at {images.shape[1:3]} ({reason})") from error

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        have = [name for name in names if name in operations]
        images = prepare(images)
        yield from paired(have, compute(images, "float64", have), compute(images, "float32", have))

    def prepare(images: np.ndarray) -> np.ndarray:
        if preprocess is None:
            return images
        given = preprocess(images)
        check_preprocessing(given, images, port, path)
        return given

    missing = tuple(endpoint for endpoint, operation in found.items() if not operation)
    takes = told_pixels(port.white) if preprocess else ""
    return Reference(name, run, prepare=prepare, missing=missing, size=size, takes=takes)


def _preprocessing(
    definition: Any, port: Port, cut: str, path: str, values: dict[str, np.ndarray], size: Size | None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """What the graph makes of images in [-1, 1] as 8-bit pixels.

    None where it cannot be run, takes no pixels, or pads or resizes images, which may have any ``size``.
    """
    stored, white = port.checkpoint.graph, port.white
    stem = stored.by_weight.get(port.plan.steps[0].source) if stored else None
    before = stored.path(stem) if stored and stem else ()
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
        graph = guarded(bare, [node_of(cut)], before[0].name, path, values)
    except ParityError:
        return None  # an operation that is not run: a decoder of files, say
    [image] = (node for node in graph.node if node.op == "Placeholder")
    dtype = tensorflow().dtypes.as_dtype(image.attr["dtype"].type).as_numpy_dtype
    session = _session(graph, path)

    def preprocess(images: np.ndarray) -> np.ndarray:
        given = for_file(images, white).astype(dtype)
        rows = [session.run(f"{node_of(cut)}:0", {f"{image.name}:0": one[None]}) for one in given]
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


def paired(names: Sequence[str], exact: list[np.ndarray], single: list[np.ndarray]) -> Iterator[tuple[str, Values]]:
    """Endpoints from lists of their values in float64 and float32."""
    for name, double, rounded in zip(names, exact, single, strict=True):
        yield name, Values(double, noise_between(rounded, double))


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


def _input_of_stem(definition: Any, port: Port, path: str) -> str:
    """The name of the first convolution's input tensor; its weights are those of the plan's first step."""
    weights = port.plan.steps[0].source
    named = {weights}
    for node in definition.node:  # frozen variables keep the Identity that read them
        if (node.op == "Identity" or node.op in READS) and node.input and node_of(node.input[0]) in named:
            named.add(node.name)
    users = [
        node for node in definition.node
        if node.op == "Conv2D" and len(node.input) > 1 and node_of(node.input[1]) in named
    ]  # fmt: skip
    if len(users) != 1:
        raise ParityError(f"{path}: {len(users)} convolutions use {weights}, expected one; use the reference tf.nn")
    source: str = users[0].input[0]
    return source


def endpoint_operations(port: Port) -> dict[str, list[str]]:
    """Endpoint -> names that its operation may have; the first match counts.

    They follow from the variables' scopes in the mapping, by the rules of slim's layers. Freezing removes the
    identities that slim names after endpoints, so their names come second.
    """
    network, scope = port.network, port.mapping.scope
    scopes = layer_scopes(expected_variables(port.mapping, network, classes=1))
    found: dict[str, list[str]] = {}
    at = inside = ""
    for node in nodes(network, classes=1):
        if node.layer:
            at = scopes[node.layer]
            inside = at.rpartition("/")[0]
        for endpoint in node.endpoints:
            if endpoint == "Logits":
                names = [f"{scope}/Logits/output", f"{scope}/Logits/Squeeze"]
            elif endpoint == "Predictions":
                names = [f"{scope}/Predictions/Reshape_1", f"{scope}/Predictions/Softmax"]
            elif endpoint == "global_pool":
                names = [f"{scope}/Logits/AvgPool2D"]
            elif node.operation == "mean":
                names = [f"{scope}/AvgPool2D/AvgPool"]
            elif node.activation:
                named = [f"{inside}/{endpoint.partition('/')[2]}"] if node.endpoints[0].count("/") else []
                names = [*named, *(f"{at}/{forms.slim}" for forms in ACTIVATIONS.values())]
            elif node.operation == "add" and "/" not in endpoint and len(node.endpoints) == 1:  # a head's
                names = ["/".join([*at.split("/")[:-2], endpoint])]
            elif node.norm or node.operation == "add":
                names = [f"{inside}/output", f"{inside}/add", f"{at}/BatchNorm/FusedBatchNormV3"]
            else:
                names = [f"{at}/BiasAdd"]
            found[endpoint] = names
    return found
