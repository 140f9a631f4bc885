"""Ports that are programs in a file, ``.onnx`` and ``.pt2``: opened and run only in a child process.

A program from the internet may never end, or fill the memory, so ``porter.parity.references.server`` opens it under
limits. It must also be data. ONNX Runtime runs only operators, but ``torch.export.load`` unpickles, loads compiled
libraries, evaluates expressions and calls any Python function that the file names. So a ``.pt2`` is read and its graph
interpreted here, with listed operators only.
"""

from __future__ import annotations

import io
import operator
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from porter.errors import ParityError
from porter.network.node import Size
from porter.parity.references.reference import Endpoints, Reference, Values
from porter.sources.bounds import allowance

Arguments = Sequence[tuple[str, Any]]  # names of the operator's schema, and values
Run = Callable[[Arguments], Any]
Compute = Callable[[np.ndarray], Mapping[str, object]]  # (N, H, W, C) float32 -> outputs by name


def onnx_program(path: Path) -> Reference:
    """An ONNX file in ONNX Runtime, in float32. Raises ParityError if it does not take images."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ParityError(f"{path}: ONNX files need pip install 'mnv3-port[onnx]' ({error})") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has its own exceptions
        raise ParityError(f"{path}: ONNX Runtime does not take it ({_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        found = ", ".join(f"{given.name}: {given.type} {given.shape}" for given in inputs) or "no inputs"
        raise ParityError(f"{path}: must take float32 images, (N, 3, H, W) or (N, H, W, 3); takes {found}")
    [given] = inputs
    channels_last = given.shape[-1] == 3
    sides = given.shape[1:3] if channels_last else given.shape[2:]

    def compute(images: np.ndarray) -> Mapping[str, object]:
        batch = images if channels_last else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return dict(
            zip([one.name for one in session.get_outputs()], session.run(None, {given.name: batch}), strict=True)
        )

    size = (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None
    return _reference(path, compute, size)


def _reference(path: Path, compute: Compute, size: Size | None) -> Reference:
    def run(images: np.ndarray, _names: Sequence[str]) -> Endpoints:
        try:
            outputs = compute(images)
        except Exception as error:  # runtimes have their own exceptions
            raise ParityError(f"{path}: does not run on images of {images.shape[1:3]} ({_line(error)})") from error
        found = [(name, one) for name, one in outputs.items() if isinstance(one, np.ndarray) and one.dtype.kind == "f"]
        if not found:
            shapes = ", ".join(
                f"{one.dtype} {one.shape}" if isinstance(one, np.ndarray) else "?" for one in outputs.values()
            )
            raise ParityError(f"{path}: none of its outputs is in floating point: {shapes or 'no outputs'}")
        for name, values in found:
            yield name, Values(values.astype(np.float32))

    return Reference(str(path), run, precision="float32", size=size)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# PyTorch operators that only compute: no file, no process, no state, no memory beyond their tensors. torch.export
# writes image networks with these. A trailing underscore means in place.
OPERATORS = frozenset(
    (
        "conv2d", "convolution", "conv_transpose2d", "linear", "addmm", "mm", "bmm", "matmul", "einsum", "t",
        "batch_norm", "_native_batch_norm_legit_no_training", "layer_norm", "native_layer_norm", "group_norm",
        "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "elu", "selu", "leaky_relu",
        "prelu", "mish", "tanh", "softplus", "softmax", "_softmax", "log_softmax", "_log_softmax", "clamp", "clamp_min",
        "clamp_max",
        "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square",
        "pow", "maximum", "minimum", "where", "eq", "ne", "lt", "le", "gt", "ge", "floor", "ceil", "round",
        "mean", "sum", "amax", "amin", "max", "min", "argmax", "var", "norm", "linalg_vector_norm",
        "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices",
        "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "_upsample_bilinear2d_aa",
        "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
        "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze",
        "expand", "expand_as", "repeat", "cat", "concat", "stack", "split", "split_with_sizes", "chunk", "slice",
        "select", "narrow", "flip", "roll", "pixel_shuffle", "contiguous", "clone", "detach", "alias",
        "lift_fresh_copy", "to", "_to_copy", "type_as", "dropout", "feature_dropout", "ones_like",
        "zeros_like", "full_like", "unbind", "masked_fill", "logical_not", "logical_and", "logical_or", "any", "all",
        "fill", "copy", "zero", "gather", "index_select", "select_scatter", "slice_scatter",
        "arange", "full", "ones", "zeros", "scalar_tensor", "sym_size", "sym_numel", "scaled_dot_product_attention",
    )
)  # fmt: skip
CHECKS = frozenset(("_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range_for_size"))
# Arithmetic on sizes
SIZES: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")},
}
SIZE_FUNCTIONS = ("torch.sym_max", "torch.sym_min", "torch.sym_not", "torch.sym_int", "torch.sym_float")
# torch/_export/serde/schema.py
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16",
}  # fmt: skip
MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 4: "preserve_format"}
PROGRAM, PROGRAM_UNTIL_2_7 = "models/model.json", "serialized_exported_program.json"


class _Given(msgspec.Struct):
    """An argument of a node, by its name in the operator's schema. ``arg`` has one entry, ``as_<kind>``."""

    name: str
    arg: dict[str, Any]


class _Node(msgspec.Struct):
    target: str
    inputs: list[_Given]
    outputs: list[dict[str, Any]]


class _Graph(msgspec.Struct):
    """The program's graph, or one that a node runs, whose inputs are the node's arguments after the graph itself."""

    nodes: list[_Node]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    tensor_values: dict[str, dict[str, Any]]


class _Signature(msgspec.Struct):
    input_specs: list[dict[str, Any]]
    output_specs: list[dict[str, Any]]


class _Module(msgspec.Struct):
    graph: _Graph
    signature: _Signature


class _Program(msgspec.Struct):
    graph_module: _Module


class _Payload(msgspec.Struct):
    """Where a tensor is stored, and its metadata (shape, strides, dtype)."""

    path_name: str
    use_pickle: bool
    tensor_meta: dict[str, Any]


class _Payloads(msgspec.Struct):
    config: dict[str, _Payload]


def exported_program(path: Path) -> Reference:
    """A ``.pt2`` of torch.export, interpreted in float32.

    Raises ParityError if it is damaged, does not take exactly one tensor of images, or holds anything but listed
    operators and plain tensors.
    """
    try:
        return _interpreted(path)
    except ParityError:
        raise
    except Exception as error:  # zipfile and damaged JSON have every kind
        raise ParityError(f"{path}: not a program of torch.export that can be read ({_line(error)})") from error


def _interpreted(path: Path) -> Reference:
    with zipfile.ZipFile(path) as archive:
        program, values = _read(path, archive)
    graph, signature = program.graph_module.graph, program.graph_module.signature
    images: list[str] = []
    state: dict[str, Any] = {}
    for spec in signature.input_specs:
        [(kind, about)] = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            state[about["arg"]["name"]] = values[about[f"{kind}_name"]]
        elif kind == "user_input" and "as_tensor" in about["arg"]:
            images.append(about["arg"]["as_tensor"]["name"])
        elif kind != "constant_input":
            raise ParityError(f"{path}: takes an input of kind {kind}, not a tensor of images")
    sizes = graph.tensor_values[images[0]]["sizes"] if len(images) == 1 else []
    sides = [side.get("as_int") for side in sizes]
    if len(sides) != 4 or sides[1] not in (3, None):
        raise ParityError(f"{path}: must take only images (N, 3, H, W); takes {len(images)} tensors, sides {sides}")
    outputs = [spec["user_output"]["arg"] for spec in signature.output_specs if "user_output" in spec]
    run = _compiled(graph.nodes, path)

    def compute(batch: np.ndarray) -> dict[str, object]:
        import torch

        known = {**state, images[0]: torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()}
        with torch.no_grad():
            run(known)
            found = [_value(output, known) for output in outputs]
        names = ["its output"] if len(found) == 1 else [f"its output[{number}]" for number in range(len(found))]
        values = [one.float().numpy() if isinstance(one, torch.Tensor) else one for one in found]
        return dict(zip(names, values, strict=True))

    def one_by_one(images: np.ndarray) -> dict[str, object]:
        """Each image fills a batch of the program's fixed size."""
        rows: dict[str, list[np.ndarray]] = {}
        for image in images:
            for name, value in compute(np.repeat(image[None], sides[0] or 1, 0)).items():
                if isinstance(value, np.ndarray):
                    rows.setdefault(name, []).append(value[:1])
        return {name: np.concatenate(values) for name, values in rows.items()}

    return _reference(
        path, compute if sides[0] is None else one_by_one, None if None in sides[2:] else (int(sides[2]), int(sides[3]))
    )


def _compiled(nodes: Sequence[_Node], path: Path) -> Callable[[dict[str, Any]], None]:
    """A function that runs ``nodes`` on values by name. Raises ParityError for operators that are not listed."""
    run = [(node, *_inputs_and_run(node, path)) for node in nodes]

    def compute(known: dict[str, Any]) -> None:
        for node, inputs, function in run:
            _keep(node.outputs, function([(one.name, _value(one.arg, known)) for one in inputs]), known)

    return compute


def _inputs_and_run(node: _Node, path: Path) -> tuple[list[_Given], Run]:
    """A node's inputs, and the function that computes it.

    A ``torch.no_grad()`` block in the model is a node that runs a graph; every other node is an operator.
    """
    if node.target != "torch.ops.higher_order.wrap_with_set_grad_enabled":
        return node.inputs, _operation(node, path)
    [graph] = [msgspec.convert(one.arg["as_graph"]["graph"], _Graph) for one in node.inputs if "as_graph" in one.arg]
    run, names = _compiled(graph.nodes, path), [one["as_tensor"]["name"] for one in graph.inputs]

    def compute(given: Arguments) -> list[Any]:
        known = {name: value for name, (_, value) in zip(names, given, strict=True)}
        run(known)
        return [_value(output, known) for output in graph.outputs]

    return [one for one in node.inputs if not {"as_graph", "as_bool"} & one.arg.keys()], compute


def _read(path: Path, archive: zipfile.ZipFile) -> tuple[_Program, Mapping[str, Any]]:
    """The program and its tensors by name. Since torch 2.8 all members are in one folder, and tensors are plain."""
    left = allowance(path.stat().st_size)

    def member(name: str) -> bytes:
        nonlocal left
        with archive.open(name) as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0:
            raise ValueError(f"{name} unpacks to more than a file of {path.stat().st_size} bytes may")
        return data

    names = archive.namelist()
    stem = next((name.removesuffix(PROGRAM) for name in names if name.endswith("/" + PROGRAM)), None)
    values: dict[str, Any] = {}
    if stem is None:
        program = msgspec.json.decode(member(PROGRAM_UNTIL_2_7), type=_Program)
        for part in ("serialized_state_dict.pt", "serialized_constants.pt"):
            values |= _unpickled(member(part))
        return program, values
    program = msgspec.json.decode(member(stem + PROGRAM), type=_Program)
    for kind in ("weights", "constants"):
        folder = f"{stem}data/{kind}/"
        if f"{folder}model.pt" in names:
            values |= _unpickled(member(f"{folder}model.pt"))
            continue
        config = msgspec.json.decode(member(f"{folder}model_{kind}_config.json"), type=_Payloads)
        parts: dict[str, Any] = {}  # several tensors may share one file
        for name, payload in config.config.items():
            if payload.path_name not in parts:
                parts[payload.path_name] = member(folder + payload.path_name)
            data = parts[payload.path_name]
            values[name] = _unpickled(data) if payload.use_pickle else _plain(name, data, payload.tensor_meta)
    return program, values


def _unpickled(data: bytes) -> Any:
    """Tensors that torch pickled. torch raises for anything that would run code."""
    import pickle

    import torch

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            "it has pickled weights that are not plain tensors, and loading them would run code"
        ) from error


def _plain(name: str, data: bytes, about: Mapping[str, Any]) -> Any:
    """A tensor of ``data`` with the file's own strides. Raises ValueError if they leave ``data``."""
    import torch

    if about["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name}: of the unknown dtype {about['dtype']}")
    dtype = getattr(torch, DTYPES[about["dtype"]])
    shape, strides = ([side["as_int"] for side in about[key]] for key in ("sizes", "strides"))
    start = about["storage_offset"]["as_int"]
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    try:
        return torch.as_strided(flat, shape, strides, start).clone()
    except RuntimeError as error:
        raise ValueError(f"tensor {name}: {shape} does not lie in its {len(data)} bytes") from error


def _operation(node: _Node, path: Path) -> Run:
    """The function that computes ``node``. Raises ParityError unless its operator is listed."""
    import torch

    name, _, overload = node.target.removeprefix("torch.ops.aten.").partition(".")
    if node.target == f"torch.ops.aten.{name}.{overload}":
        if name in CHECKS:
            return lambda _given: None
        family = getattr(torch.ops.aten, name) if {name, name.removesuffix("_")} & OPERATORS else None
        if family is not None and overload in family.overloads():
            function = getattr(family, overload)
            return lambda given: function(**dict(given))
    if node.target.removeprefix("_operator.") in SIZES and node.target.startswith("_operator."):
        return lambda given: SIZES[node.target.removeprefix("_operator.")](*(value for _, value in given))
    if node.target in SIZE_FUNCTIONS:
        return lambda given: getattr(torch, node.target.removeprefix("torch."))(*(value for _, value in given))
    raise ParityError(
        f"{path}: operator {node.target} is not one that a network of images needs, so the program is not run"
    )


def _value(argument: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """The value of an argument. Raises ValueError unless it is a number, text or tensor."""
    import torch

    [(kind, value)] = argument.items()
    if kind == "as_none":
        return None
    if kind == "as_float":
        return float(value)  # "Infinity" is stored as text
    if kind == "as_floats":
        return [float(one) for one in value]
    if kind in ("as_int", "as_bool", "as_string", "as_ints", "as_bools"):
        return value
    if kind == "as_tensor":
        return known[value["name"]]
    if kind == "as_tensors":
        return [known[one["name"]] for one in value]
    if kind in ("as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return _symbol(value, known)
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_symbol(one, known) for one in value]
    if kind == "as_scalar_type":
        return getattr(torch, DTYPES[value])
    if kind == "as_memory_format":
        return getattr(torch, MEMORY_FORMATS[value])
    if kind == "as_layout":
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")
    raise ValueError(f"an argument of kind {kind}")


def _symbol(value: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """``{"as_name": ...}`` names a value computed before; any other value is literal."""
    [(kind, content)] = value.items()
    if kind == "as_tensor":
        return known[content["name"]]
    return known[content] if kind == "as_name" else None if kind == "as_none" else content


def _keep(outputs: Iterable[Mapping[str, Any]], result: Any, known: dict[str, Any]) -> None:
    """Store a node's results in ``known``, by name."""
    names: list[str] = []
    for output in outputs:
        [(kind, value)] = output.items()
        several = value if isinstance(value, list) else [value]
        names += [one.get("as_name") or one["name"] for one in several if kind != "as_none" and isinstance(one, dict)]
    results = result if isinstance(result, (tuple, list)) else [result]
    known.update(zip(names, results, strict=False))
