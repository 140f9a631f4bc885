"""The LiteRT (TensorFlow Lite) interpreter running a ``.tflite``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from porter.conversion import Port
from porter.errors import ParityError
from porter.loaders.tflite import constant, output_tensors, values_of
from porter.loaders.tflite_graph import Graph, read_graph
from porter.mapping.rules import module_outputs
from porter.network.endpoints import endpoint_modules
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Endpoints, Reference


class InputScale(NamedTuple):
    """The graph's own preprocessing: what the network takes is the graph's input times ``factor`` plus ``offset``."""

    factor: float
    offset: float


def interpreter(port: Port) -> Reference:
    """The port's .tflite, one image at a time, by the built-in kernels, which keep every tensor.

    Raises ParityError without an interpreter, or where it does not take the file.
    """
    path = port.checkpoint.path
    graph = read_graph(path)
    runner = _load(path)
    details = runner.get_input_details()[0]
    scale, zero_point = details["quantization"]
    preprocessing = input_scale(graph, path)
    positions = output_tensors(graph)
    names = module_outputs(port.mapping, port.network, port.classes)
    tensors = {}
    for endpoint, module in endpoint_modules(port.network, port.classes).items():
        found = next((positions[name] for name in names.get(module, ()) if name in positions), None)
        if found is not None:
            tensors[endpoint] = found
    has_softmax = any(operator.kind == "softmax" for operator in graph.operators)
    if has_softmax and port.classes and not port.plan.ranges:  # the port's softmax is not quantised
        tensors["Predictions"] = graph.outputs[0]

    def quantized(images: np.ndarray) -> np.ndarray:
        return np.clip(np.round(images / scale) + zero_point, 0, 255)

    def prepare(images: np.ndarray) -> np.ndarray:
        """``images`` as the network gets them: after rounding to 8 bits, or the graph's own preprocessing."""
        held: np.ndarray
        if scale:
            held = (quantized(images) - zero_point) * np.float32(scale)
        else:
            held = unscaled(images) * np.float32(preprocessing.factor) + np.float32(preprocessing.offset)
        return held.astype(np.float32)

    def unscaled(images: np.ndarray) -> np.ndarray:
        return ((images - preprocessing.offset) / preprocessing.factor).astype(np.float32)

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        given = quantized(images) if scale else unscaled(images)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in names if name in tensors}
        for image in given.astype(details["dtype"]):
            runner.set_tensor(details["index"], image[None])
            runner.invoke()
            for name, values in rows.items():
                values.append(_dequantized(runner.get_tensor(tensors[name]), graph, tensors[name]))
        for name in list(rows):
            found = np.concatenate(rows.pop(name))
            yield name, found.reshape(len(images), -1) if name in ("Logits", "Predictions") else found

    height, width = details["shape"][1:3]
    return Reference(f"interpreter ({path.name})", run, size=(int(height), int(width)), prepare=prepare)


def _load(path: Path) -> Any:
    options = {}
    try:
        from ai_edge_litert import interpreter as lite
    except ImportError:
        lite = tensorflow().lite
        resolver = lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    else:
        resolver = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    options = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": resolver}
    try:
        runner = lite.Interpreter(str(path), **options)
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ParityError(f"{path}: the interpreter does not take it ({error})") from error
    return runner


def _dequantized(values: np.ndarray, graph: Graph, position: int) -> np.ndarray:
    tensor = graph.tensors[position]
    if not tensor.scales:
        return values
    return (values.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])


def input_scale(graph: Graph, path: Path) -> InputScale:
    """What the graph does to its input before the first convolution: additions and multiplications of constants."""
    factor, offset = 1.0, 0.0
    at = graph.inputs[0]
    for operator in graph.operators:
        if operator.kind not in ("mul", "add", "sub") or operator.inputs[0] != at:
            continue
        tensor = constant(graph, operator.inputs, 1)
        if tensor is None:
            break
        value = float(values_of(tensor, path).reshape(-1)[0])
        if operator.kind == "mul":
            factor, offset = factor * value, offset * value
        else:
            offset += value if operator.kind == "add" else -value
        at = operator.outputs[0]
    return InputScale(factor, offset)
