"""The LiteRT (TensorFlow Lite) interpreter running a ``.tflite``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from porter.architecture.endpoints import endpoint_modules
from porter.errors import ParityError
from porter.formats.tflite import constant, output_tensors, values_of
from porter.formats.tflite_graph import Graph, read_graph
from porter.jobs.convert import Port
from porter.mapping.rules import module_outputs
from porter.parity.references.live_tensorflow import tensorflow, tflite_package
from porter.parity.references.reference import Endpoints, Reference, Values, noise_between


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
    runner = _load(path.read_bytes(), path, builtin=True)
    details = runner.get_input_details()[0]
    preprocessing = input_scale(graph, path)
    positions = output_tensors(graph)
    names = module_outputs(port.mapping, port.network, port.classes)
    tensors = {}
    for endpoint, module in endpoint_modules(port.network, port.classes).items():
        found = next((positions[name] for name in names.get(module, ()) if name in positions), None)
        if found is not None:
            tensors[endpoint] = found
    has_softmax = any(operator.kind == "softmax" for operator in graph.operators)
    quantised = bool(port.plan.ranges)
    if has_softmax and port.classes and not quantised:  # the port's softmax is not quantised
        tensors["Predictions"] = graph.outputs[0]
    stem = next(operator.inputs[0] for operator in graph.operators if operator.kind == "conv_2d")
    takes_levels = details["dtype"] != np.float32

    def given(images: np.ndarray) -> np.ndarray:
        """What the file takes for ``images`` in [-1, 1]: levels of 8 bits, or before its own preprocessing."""
        if not takes_levels:
            return ((images - preprocessing.offset) / preprocessing.factor).astype(np.float32)
        (scale, zero), limits = details["quantization"], np.iinfo(details["dtype"])
        return np.clip(np.round(images / scale) + zero, limits.min, limits.max).astype(details["dtype"])

    def prepare(images: np.ndarray) -> np.ndarray:
        """``images`` as the network gets them: what the file makes of them before its first convolution."""
        held = []
        for image in given(images):
            runner.set_tensor(details["index"], image[None])
            runner.invoke()
            held.append(_dequantize(runner.get_tensor(stem), graph, stem))
        return np.concatenate(held)

    def computed(interpreter: Any, image: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        for name in names:
            values = _dequantize(interpreter.get_tensor(tensors[name]), graph, tensors[name])
            yield name, values.reshape(1, -1) if name in ("Logits", "Predictions") else values

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        have = [name for name in names if name in tensors]
        rows: dict[str, list[np.ndarray]] = {name: [] for name in have}
        others: dict[str, list[np.ndarray]] = {name: [] for name in have}
        for image in given(images):
            for name, values in computed(runner, image[None], have):
                rows[name].append(values)
            for name, values in computed(twin, image[None], have) if twin else ():
                others[name].append(values)
        for name in have:
            found = np.concatenate(rows.pop(name))
            yield name, Values(found, noise_between(np.concatenate(others.pop(name)), found) if twin else None)

    height, width = details["shape"][1:3]
    twin = None if quantised else _load(_with_outputs(path, sorted(set(tensors.values()))), path, builtin=False)
    return Reference(
        f"interpreter ({path.name})",
        run,
        precision="levels" if quantised else "float32",
        size=(int(height), int(width)),
        prepare=prepare,
        missing=tuple(name for name in endpoint_modules(port.network, port.classes) if name not in tensors),
        versions={"litert": litert_version()},
    )


def litert_version() -> str:
    """The version of the package whose interpreter runs."""
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return f"tensorflow {tensorflow().__version__}"


def _load(content: bytes, path: Path, builtin: bool) -> Any:
    """An interpreter of ``content``; ``builtin`` kernels keep every tensor, XNNPACK's the outputs alone."""
    lite, _ = tflite_package()
    options: dict[str, Any] = {}
    if builtin:
        resolver = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        options = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": resolver}
    try:
        runner = lite.Interpreter(model_content=content, **options)
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ParityError(f"{path}: the interpreter does not take it ({error})") from error
    return runner


def _with_outputs(path: Path, positions: list[int]) -> bytes:
    """The model ``path`` with the tensors at ``positions`` as its outputs."""
    import flatbuffers

    _, schema = tflite_package()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    model.subgraphs[0].outputs = np.array(positions, np.int32)
    model.signatureDefs = None  # they name the outputs that there were
    builder = flatbuffers.Builder(path.stat().st_size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _dequantize(values: np.ndarray, graph: Graph, position: int) -> np.ndarray:
    tensor = graph.tensors[position]
    if not tensor.scales:
        return values
    return (values.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])


def input_scale(graph: Graph, path: Path) -> InputScale:
    """The scale and offset that the graph applies to its input before the first convolution."""
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
