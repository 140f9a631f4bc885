"""The levels that the first convolution of an 8-bit ``.tflite`` gets for each pixel value.

Files made of networks with their own preprocessing rescale pixels in integers, whose ties float arithmetic rounds the
other way. These are TensorFlow Lite's reference kernels: tensorflow/lite/kernels/internal/common.cc and
reference/integer_ops/{add,mul}.h, reference/{quantize,requantize,sub}.h.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from porter.sources.tflite import LEVELS as LIMITS
from porter.sources.tflite import float32
from porter.sources.tflite_graph import Graph, Operator, Tensor
from porter.sources.variable import FileView

if TYPE_CHECKING:
    import numpy as np

LEFT_SHIFT = 20  # of the operands of an addition
MOST_CHANNELS, MOST_STEPS = 16, 16  # of an image, and from it to the first convolution


def pixel_levels(graph: Graph, path: Path) -> tuple[tuple[float, ...], ...]:
    """The real value of its input for each of 256 pixels: a row for all channels, or one for each.

    Empty where pixels do not become levels in integers.
    """
    import numpy as np

    first = next((o for o in graph.operators if o.kind in ("conv_2d", "depthwise_conv_2d")), None)
    makers = {output: operator for operator in graph.operators for output in operator.outputs}
    steps: list[tuple[Operator, int]] = []  # with the computed input
    position = first.inputs[0] if first else -1
    while position in makers:
        operator = makers[position]
        computed = [i for i in operator.inputs if i >= 0 and not graph.tensors[i].size]
        if len(computed) != 1 or operator.fused:
            return ()
        position = computed[0]
        steps.append((operator, position))
        if len(steps) > MOST_STEPS:
            return ()
    if position < 0 or position not in graph.inputs[:1]:
        return ()
    image = graph.tensors[position]
    pixels = np.arange(256, dtype=np.int64)[:, None]
    if image.dtype in LIMITS:
        levels = pixels + LIMITS[image.dtype][0]
    elif steps and _takes_pixels(graph, steps[-1][0]):
        operator, _ = steps.pop()
        image = graph.tensors[operator.outputs[0]]
        levels = _quantized(pixels, image)
    else:
        return ()
    for operator, position in reversed(steps):
        after = graph.tensors[operator.outputs[0]]
        if operator.kind in ("pad", "reshape"):  # they move pixels only
            continue
        if _scale(graph.tensors[position]) is None or _scale(after) is None:
            return ()
        if operator.kind == "quantize":
            levels = _requantized(levels, graph.tensors[position], after)
        elif operator.kind in ("add", "sub", "mul") and len(operator.inputs) == 2:
            operands = []
            for i in operator.inputs:
                tensor = graph.tensors[i]
                value = levels if i == position else _constant(tensor, path)
                if value is None or _scale(tensor) is None:
                    return ()
                operands.append((value, tensor))
            levels = _KERNELS[operator.kind](operands, after)
        else:
            return ()
    last = graph.tensors[first.inputs[0]] if first else image
    scale = _scale(last)
    if scale is None:
        return ()
    real = (levels - last.zero_points[0]) * scale
    return tuple(tuple(row) for row in real.T.tolist())


def _takes_pixels(graph: Graph, operator: Operator) -> bool:
    """Whether a float image is quantised over 0 to 255, as calibration on pixels has it."""
    tensor = graph.tensors[operator.outputs[0]]
    scale = _scale(tensor)
    if operator.kind != "quantize" or scale is None:
        return False
    low, high = ((level - tensor.zero_points[0]) * scale for level in LIMITS[tensor.dtype])
    return abs(low) < 1 and abs(high - 255) < 1


def _scale(tensor: Tensor) -> float | None:
    """The only scale of a tensor of 8 bits."""
    if tensor.dtype not in LIMITS or len(tensor.scales) != 1 or not 0 < tensor.scales[0] < math.inf:
        return None
    low, high = LIMITS[tensor.dtype]
    return tensor.scales[0] if low <= tensor.zero_points[0] <= high else None


def _constant(tensor: Tensor, path: Path) -> np.ndarray | None:
    """The levels of a constant, one or one for each channel."""
    import numpy as np

    if (
        tensor.dtype not in LIMITS
        or not 0 < tensor.size <= MOST_CHANNELS
        or tensor.size != max((1, *tensor.shape[-1:]))
    ):
        return None
    data = FileView(path)[tensor.start : tensor.start + tensor.size]
    return np.frombuffer(data, tensor.dtype).astype(np.int64)


Operand = tuple["np.ndarray", Tensor]


def _add(operands: list[Operand], after: Tensor, sign: int = 1) -> np.ndarray:
    twice = 2 * max(tensor.scales[0] for _, tensor in operands)
    first, second = (
        _multiplied((levels - tensor.zero_points[0]) << LEFT_SHIFT, tensor.scales[0] / twice)
        for levels, tensor in operands
    )
    return _clamped(_multiplied(first + sign * second, twice / ((1 << LEFT_SHIFT) * after.scales[0])), after)


def _subtract(operands: list[Operand], after: Tensor) -> np.ndarray:
    return _add(operands, after, sign=-1)


def _multiply(operands: list[Operand], after: Tensor) -> np.ndarray:
    (first, one), (second, other) = operands
    product = (first - one.zero_points[0]) * (second - other.zero_points[0])
    factor = float32(float32(one.scales[0] * other.scales[0]) / after.scales[0])
    return _clamped(_multiplied(product, factor), after)


_KERNELS = {"add": _add, "sub": _subtract, "mul": _multiply}


def _quantized(values: np.ndarray, after: Tensor) -> np.ndarray:
    """Whole numbers that are not negative as levels."""
    import numpy as np

    scaled = values.astype(np.float32) / np.float32(after.scales[0])
    return _clamped(np.floor(scaled + np.float32(0.5)).astype(np.int64), after)


def _requantized(levels: np.ndarray, before: Tensor, after: Tensor) -> np.ndarray:
    return _clamped(_multiplied(levels - before.zero_points[0], before.scales[0] / after.scales[0]), after)


def _clamped(values: np.ndarray, after: Tensor) -> np.ndarray:
    import numpy as np

    return np.clip(values + after.zero_points[0], *LIMITS[after.dtype])


def _multiplied(values: np.ndarray, factor: float) -> np.ndarray:
    """``values`` times ``factor``, which the kernels hold as 31 bits and a shift; it rounds twice."""
    import numpy as np

    fraction, shift = math.frexp(min(factor, 2.0**30))
    bits = math.floor(fraction * (1 << 31) + 0.5)
    if bits == 1 << 31:
        bits, shift = bits // 2, shift + 1
    if shift < -31:
        bits = shift = 0
    product = (values << max(shift, 0)) * bits
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)  # division that rounds towards zero
    right = max(-shift, 0)
    mask = (1 << right) - 1
    rest = high & mask
    return (high >> right) + (rest > (mask >> 1) + (high < 0))
