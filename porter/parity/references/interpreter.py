"""The LiteRT (TensorFlow Lite) interpreter running a ``.tflite``."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.mapping.rules import module_outputs
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_modules
from porter.parity.references.live_tensorflow import tensorflow, tflite_package
from porter.parity.references.reference import (
    FEWEST_VALUES,
    Endpoints,
    Reference,
    Values,
    as_pixels,
    for_port,
    noise_between,
    told_pixels,
)
from porter.photos.images import normalized
from porter.port import Port
from porter.sources.tflite import constant, dynamic_range, output_tensors, values_of
from porter.sources.tflite_graph import Graph, read_graph

# Preprocessing in float32 rounds numbers up to 255 by about 1e-5, then divides them by 127.5
FLOAT_STEP = 1e-5
ROUNDS = ("quantize", "dequantize")  # operators that only round


class InputScale(NamedTuple):
    """The graph's own preprocessing: network input = graph input * ``factor`` + ``offset``.

    Both are one number, or one per channel. ``step``: how far rounding to 8 bits on the way can move a value.
    """

    factor: np.ndarray
    offset: np.ndarray
    step: float


def interpreter(port: Port) -> Reference:
    """Runs the port's .tflite, one image at a time, with the built-in kernels, which keep every tensor.

    Raises ParityError without an interpreter, or if it refuses the file.
    """
    path = port.checkpoint.path
    graph = read_graph(path)
    rounded = dynamic_range(graph)
    content = _with_float_weights(path, graph, rounded) if rounded else path.read_bytes()
    runner = _load(content, path, builtin=True)
    details = runner.get_input_details()[0]
    preprocessing = input_scale(graph, path)
    positions = output_tensors(graph)
    names = module_outputs(port.mapping, port.network, port.classes)
    if port.network.tail:  # whose last layer's output is the classifier's
        last = port.network.tail_layer(len(port.network.tail) - 1)
        names = names | {"classifier": names.get(last, [])}
    tensors = {}
    for endpoint, module in endpoint_modules(port.network, port.classes).items():
        found = next(
            (positions[name] for name in names.get(module.removeprefix("backbone."), ()) if name in positions), None
        )
        if found is not None:
            tensors[endpoint] = found
    softmax = [operator.outputs[0] for operator in graph.operators if operator.kind == "softmax"]
    quantised, spec = bool(port.plan.ranges), port.mapping.input
    if softmax and port.classes and not quantised:  # the port's softmax is not quantised
        tensors["Predictions"] = softmax[-1]
    stem = next(operator.inputs[0] for operator in graph.operators if operator.kind == "conv_2d")

    def computed(interpreter: Any, inputs: np.ndarray, wanted: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The values of the tensors ``wanted``, by name, for ``inputs`` as the file takes them."""
        rows: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        for image in inputs:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
            interpreter.invoke()
            for name, position in wanted.items():
                values = _dequantize(interpreter.get_tensor(position), graph, position)
                rows[name].append(values.reshape(1, -1) if name in CLASS_ENDPOINTS else values)
        return {name: np.concatenate(values) for name, values in rows.items()}

    def given(images: np.ndarray) -> np.ndarray:
        """The file's input for ``images`` in [-1, 1]: the pixels themselves if it takes 8 bits."""
        if details["dtype"] != np.float32:
            return (as_pixels(images).astype(np.int32) + np.iinfo(details["dtype"]).min).astype(details["dtype"])
        seen = for_port(images, spec, port.white, np.float64)  # before its own preprocessing:
        return ((seen - preprocessing.offset) / preprocessing.factor).astype(np.float32)

    def prepare(images: np.ndarray) -> np.ndarray:
        """``images`` as the first convolution gets them, after the file's own preprocessing."""
        prepared = computed(runner, given(images), {"": stem})[""]
        ours = for_port(images, spec, port.white, np.float64)
        _check_values(prepared, ours, preprocessing.step, path)
        if spec.levels is not None and quantised:
            ours = normalized(as_pixels(images), spec.mean, spec.std, spec.levels)
            _check_values(prepared, ours, FLOAT_STEP, path)
        return prepared

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        have, inputs = {name: tensors[name] for name in names if name in tensors}, given(images)
        found, others = (computed(one, inputs, have) if one else {} for one in (runner, twin))
        for name in have:
            values = found.pop(name)
            yield name, Values(values, noise_between(others.pop(name), values) if twin else None)

    height, width = details["shape"][1:3]
    twin = None if quantised else _load(_rounded_otherwise(content, sorted(set(tensors.values()))), path, builtin=False)
    besides = ", its weights in float: its rounding of activations is not compared" if rounded else ""
    return Reference(
        f"interpreter ({path.name}{besides})",
        run,
        precision="levels" if quantised else "float32",
        size=(int(height), int(width)),
        prepare=prepare,
        missing=tuple(name for name in endpoint_modules(port.network, port.classes) if name not in tensors),
        takes=told_pixels(port.white if details["dtype"] == np.float32 else 255),
        versions={"litert": litert_version()},
    )


def _check_values(prepared: np.ndarray, images: np.ndarray, step: float, path: Path) -> None:
    """Raise ParityError unless the network gets ``images``, within ``step``.

    Otherwise both sides would agree even on black images.
    """
    distinct = min(FEWEST_VALUES, len(np.unique(images)))
    if not np.abs(prepared - images).max() <= step or len(np.unique(prepared)) < distinct:
        raise ParityError(
            f"{path}: its own preprocessing gives its network values from {prepared.min():.4g} to {prepared.max():.4g} "
            f"for images from {images.min():.4g} to {images.max():.4g}, so a comparison would be of other images"
        )


def litert_version() -> str:
    """The version of the package whose interpreter runs."""
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return f"tensorflow {tensorflow().__version__}"


def _load(content: bytes, path: Path, builtin: bool) -> Any:
    """An interpreter of ``content``. ``builtin`` kernels keep every tensor, XNNPACK's only the outputs."""
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


def run_file(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """The outputs of a float ``.tflite`` for (N, H, W, C) images, by the built-in kernels. Raises ParityError."""
    runner = _load(path.read_bytes(), path, builtin=True)
    given = runner.get_input_details()[0]["index"]
    runner.resize_tensor_input(given, images.shape)
    runner.allocate_tensors()
    runner.set_tensor(given, images)
    runner.invoke()
    return [runner.get_tensor(one["index"]) for one in runner.get_output_details()]


def _rounded_otherwise(content: bytes, positions: list[int]) -> bytes:
    """The model ``content`` with the tensors at ``positions`` as its outputs, and means in another order.

    A mean over a map adds up tens of thousands of numbers in float32, one after the other. Here it is down each
    column first, which rounds less: the difference shows what the order costs.
    """
    _, schema = tflite_package()
    model = _unpacked(content)
    graph, floats = model.subgraphs[0], schema.TensorType.FLOAT32

    def add(shape: list[int], kind: int, buffer: int = 0) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = shape, kind, buffer
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    rows = schema.BufferT()
    rows.data = np.frombuffer(np.array([1], "<i4").tobytes(), np.uint8)
    model.buffers.append(rows)
    axis = add([1], schema.TensorType.INT32, len(model.buffers) - 1)
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    operators = []
    for operator in graph.operators:
        given = (
            graph.tensors[operator.inputs[0]] if kinds[operator.opcodeIndex] == schema.BuiltinOperator.MEAN else None
        )
        if given is not None and given.type == floats and len(given.shape) == 4:
            first = copy.deepcopy(operator)
            first.inputs, first.outputs = [operator.inputs[0], axis], [add([1, 1, *given.shape[2:]], floats)]
            first.builtinOptions.keepDims = True
            operator.inputs = [*first.outputs, *operator.inputs[1:]]
            operators.append(first)
        operators.append(operator)
    graph.operators, graph.outputs = operators, np.array(positions, np.int32)
    model.signatureDefs = None  # they name the old outputs
    return _packed(model)


def _with_float_weights(path: Path, graph: Graph, positions: list[int]) -> bytes:
    """The model ``path`` with the tensors at ``positions`` dequantised: its own network without rounded activations."""
    _, schema = tflite_package()
    model = _unpacked(path.read_bytes())
    for position in positions:
        tensor, buffer = model.subgraphs[0].tensors[position], schema.BufferT()
        buffer.data = np.frombuffer(values_of(graph.tensors[position], path).tobytes(), np.uint8)
        tensor.buffer, tensor.type, tensor.quantization = len(model.buffers), schema.TensorType.FLOAT32, None
        model.buffers.append(buffer)
    return _packed(model)


def _unpacked(content: bytes) -> Any:
    _, schema = tflite_package()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _dequantize(values: np.ndarray, graph: Graph, position: int) -> np.ndarray:
    tensor = graph.tensors[position]
    if not tensor.scales:
        return values
    return (values.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])


def input_scale(graph: Graph, path: Path) -> InputScale:
    """The scale and offset that the graph applies to its input before the first convolution."""
    factor, offset = np.ones(1), np.zeros(1)
    at = graph.inputs[0]
    steps = [_step(graph, at)]
    for operator in graph.operators:
        if operator.kind not in ("mul", "add", "sub", *ROUNDS) or operator.inputs[0] != at:
            continue
        if operator.kind not in ROUNDS:
            tensor = constant(graph, operator.inputs, 1)
            if tensor is None:
                break
            value = values_of(tensor, path).reshape(-1).astype(np.float64)
            if operator.kind == "mul":
                factor, offset = factor * value, offset * value
                steps = [step * float(np.abs(value).max()) for step in steps]
            else:
                offset = offset + (value if operator.kind == "add" else -value)
        at = operator.outputs[0]
        steps.append(_step(graph, at))
    return InputScale(factor, offset, FLOAT_STEP + sum(steps))


def _step(graph: Graph, position: int) -> float:
    """The distance between a tensor's levels; rounding to nearest and in fixed point together stay within it."""
    scales = graph.tensors[position].scales
    return scales[0] if scales else 0.0
