"""Reader of ``.tflite`` files: constants by the operator that uses them, dequantised.

The n-th operator with weights (from 0, in the order of computation) gives ``n/weights`` and ``n/bias``. Later outputs
are named after it and their own operator (``n/conv_2d``, ``n/conv_2d_relu6`` with a fused activation, ``n/mul``,
``n/mul_1``). If an output is quantised, its range is ``.../min``, ``.../max`` and the other fields of
porter.mapping.ranges.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.sources.stored_graph import StoredGraph
from porter.sources.tflite_graph import SIZES, Graph, Tensor, read_graph
from porter.sources.variable import Contents, FileView, Variable

if TYPE_CHECKING:
    import numpy as np

WITH_WEIGHTS = ("conv_2d", "depthwise_conv_2d", "fully_connected")
LEVELS = {"uint8": (0, 255), "int8": (-128, 127)}  # quantised activations


def read_tflite(path: Path) -> Contents:
    """Open the TFLite model ``path``. Raises CheckpointError if it is damaged or holds no weights."""
    graph = read_graph(path)
    variables: dict[str, Variable] = {}
    number = 0
    for operator in graph.operators:
        if operator.kind not in WITH_WEIGHTS:
            continue
        weights, bias = (constant(graph, operator.inputs, position) for position in (1, 2))
        if weights is None:
            raise CheckpointError(f"{path}: operator {number} ({operator.kind}) has no constant weights")
        shape = weights.shape
        if operator.kind == "fully_connected" and len(shape) == 2:  # it is a 1x1 convolution
            shape = (shape[0], 1, 1, shape[1])
        if len(shape) != 4:
            raise CheckpointError(
                f"{path}: operator {number} ({operator.kind}): weights of shape {list(shape)}; damaged"
            )
        variables[f"{number}/weights"] = _variable(f"{number}/weights", weights, shape, path, operator.fused)
        channels = shape[-1] if operator.kind == "depthwise_conv_2d" else shape[0]
        named = f"{number}/bias"
        if bias is not None:
            variables[named] = _variable(named, bias, bias.shape, path, operator.fused)
        else:
            variables[named] = _given(named, (channels,), 0.0, path, operator.fused)
        for field, value in _limits(weights).items():
            variables[f"{number}/weights/{field}"] = _given(f"{number}/weights/{field}", (), value, path)
        number += 1
    if not variables:
        raise CheckpointError(f"{path}: a .tflite without weights in it")
    makers = {operator.outputs[0]: number for number, operator in enumerate(graph.operators) if operator.outputs}
    for name, position in output_tensors(graph).items():
        for field, value in _quantization(graph, position, makers).items():
            shape = (len(value),) if isinstance(value, list) else ()
            variables[f"{name}/{field}"] = _given(f"{name}/{field}", shape, value, path)
    rounds = "8 bits, and the interpreter rounds activations as well (dynamic range)" if dynamic_range(graph) else ""
    stated = partial(_stored_graph, graph, path)
    return Contents(variables, [path], graph=stated, rounds=rounds)


def dynamic_range(graph: Graph) -> list[int]:
    """The positions of 8-bit weights that are used with float maps, which the interpreter rounds as it runs."""
    tensors, layers = graph.tensors, (o for o in graph.operators if o.kind in WITH_WEIGHTS)
    pairs = {(o.inputs[1], tensors[o.inputs[0]].dtype) for o in layers if len(o.inputs) > 1 and min(o.inputs[:2]) >= 0}
    return sorted(position for position, dtype in pairs if dtype == "float32" and tensors[position].dtype == "int8")


def _stored_graph(graph: Graph, path: Path) -> StoredGraph:
    from porter.sources.tflite_operations import stored_graph

    return stored_graph(graph, path)


def output_tensors(graph: Graph) -> dict[str, int]:
    """Name (see above) -> position of the tensor.

    ``input`` is the image, ``input/...`` are tensors before the first weights.
    """
    owner = dict.fromkeys(graph.inputs, "input")
    found = {"input": graph.inputs[0]} if graph.inputs else {}
    counts: Counter[str] = Counter()
    number = -1
    for operator in graph.operators:
        if operator.kind == "dequantize" or not operator.outputs:
            continue
        if operator.kind in WITH_WEIGHTS:
            number += 1
            own = str(number)
        else:  # its last predecessor with weights
            owners = [owner[i] for i in operator.inputs if i in owner]
            own = max(owners, key=lambda name: -1 if name == "input" else int(name), default="input")
        name = f"{own}/{operator.kind}" + ("_relu6" if operator.fused == "relu6" and own == str(number) else "")
        of_rows = operator.kind == "mean" and operator.inputs[0] == found.get(name)  # a mean in two steps
        counts[name] += not of_rows
        found[name if counts[name] == 1 else f"{name}_{counts[name] - 1}"] = operator.outputs[0]
        owner[operator.outputs[0]] = own
    return found


def constant(graph: Graph, inputs: tuple[int, ...], position: int) -> Tensor | None:
    """The constant at an operator's input, through the ``dequantize`` that float16 models put before it."""
    index = inputs[position] if position < len(inputs) else -1
    if index < 0:
        return None
    tensor = graph.tensors[graph.dequantized.get(index, index)]
    return tensor if tensor.size else None


def values_of(tensor: Tensor, path: Path) -> np.ndarray:
    """The values of a constant as float32, dequantised. Raises CheckpointError unless they are numbers."""
    import numpy as np

    if tensor.dtype not in SIZES:
        raise CheckpointError(f"{path}: tensor {tensor.name}: {tensor.dtype} values cannot be read")
    data = FileView(path)[tensor.start : tensor.start + tensor.size]
    stored = np.frombuffer(data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)
    if not tensor.scales:
        return stored.astype(np.float32)
    shape = [1] * stored.ndim
    if len(tensor.scales) > 1:
        shape[tensor.axis] = -1
    # In float64: unscaled int32 biases need more than 24 bits
    zero_points = np.array(tensor.zero_points, np.float64).reshape(shape)
    scales = np.array(tensor.scales, np.float64).reshape(shape)
    values: np.ndarray = ((stored - zero_points) * scales).astype(np.float32)
    return values.reshape(tensor.shape)


def _variable(name: str, tensor: Tensor, shape: tuple[int, ...], path: Path, fused: str | None) -> Variable:
    def load() -> np.ndarray:
        return values_of(tensor, path).reshape(shape)

    return Variable(name, shape, "float32", tensor.name, str(path), load, fused)


def _given(name: str, shape: tuple[int, ...], value: Any, path: Path, fused: str | None = None) -> Variable:
    def load() -> np.ndarray:
        import numpy as np

        return np.full(shape, value, np.float64)

    return Variable(name, shape, "float64", name, str(path), load, fused)


def _quantization(graph: Graph, position: int, makers: Mapping[int, int]) -> dict[str, Any]:
    """The fields of porter.mapping.ranges.Range for a tensor; empty if it is float.

    ``makers``: tensor -> number of the operator that computes it.
    """
    found = _limits(graph.tensors[position])
    if not found or position not in makers:
        return found
    maker = graph.operators[makers[position]]
    inputs = [graph.tensors[i] for i in maker.inputs[:2] if i >= 0]
    if maker.kind == "hard_swish":
        source = _limits(inputs[0]) if inputs else {}
        found |= {f"input_{field}": source[field] for field in ("min", "scale") if source}
    elif maker.kind == "mean" and inputs and len(inputs[0].scales) == 1:
        flat = len(graph.tensors[position].shape) < len(inputs[0].shape)
        found |= {"input_scale": inputs[0].scales[0], "input_zero": float(inputs[0].zero_points[0])}
        found |= {"axes_dropped": 1.0} if flat else {}
    elif maker.kind == "add" and [(len(tensor.scales), tensor.size) for tensor in inputs] == [(1, 0), (1, 0)]:
        # The branch was computed last, the block's input before it
        skip, branch = sorted(maker.inputs[:2], key=lambda i: makers.get(i, -1))
        found |= {"skip_scale": graph.tensors[skip].scales[0], "branch_scale": graph.tensors[branch].scales[0]}
    elif maker.kind in WITH_WEIGHTS and len(inputs[0].scales) == 1 < len(inputs[1].scales):
        units = [inputs[0].scales[0] * scale for scale in inputs[1].scales]
        multipliers = [unit / found["scale"] for unit in units]
        found |= {"unit": units, "multiplier": multipliers, "ties_away": 0.0}
    elif maker.kind in (*WITH_WEIGHTS, "mul") and [len(tensor.scales) for tensor in inputs] == [1, 1]:
        unit = float32(inputs[0].scales[0] * inputs[1].scales[0])
        multiplier = unit / found["scale"]
        if maker.kind == "mul":
            multiplier = float32(multiplier)
        # Dense convolutions use ruy, which rounds ties upwards
        ties_away = float(maker.kind in ("depthwise_conv_2d", "mul"))
        found |= {"unit": unit, "multiplier": multiplier, "ties_away": ties_away}
    return found


def _limits(tensor: Tensor) -> dict[str, Any]:
    if tensor.dtype not in LEVELS or len(tensor.scales) != 1 or not 0 < tensor.scales[0] < math.inf:
        return {}
    low, high = ((level - tensor.zero_points[0]) * tensor.scales[0] for level in LEVELS[tensor.dtype])
    return {"min": low, "max": high, "scale": tensor.scales[0]}


def float32(value: float) -> float:
    """``value`` rounded to float32, which the kernels compute in; infinite if it is too large."""
    return ctypes.c_float(value).value
