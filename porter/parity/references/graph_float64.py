"""A float32 graph rewritten in float64: the function that its code defines, without the rounding.

Weights keep their float32 values. Constants in the code (0.16667, 1/6, epsilon) were rounded to float32 when the graph
was written; they become the original decimal or fraction again.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from porter.parity.references.graph_guard import FLOAT, constant
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.tf_heads import splice_resize

DOUBLE = 2  # DT_DOUBLE of tensorflow/core/framework/types.proto
# For fractions in code, such as 1 / 6. A larger denominator would turn decimals such as 0.16667 into fractions
LARGEST_DENOMINATOR = 64


def in_float64(graph: Any) -> Any:
    """``graph`` (from ``guarded``) with every float32 tensor in float64, under the same names.

    TensorFlow has no fused batch norm in float64, so batch norms become additions and multiplications. Resizing always
    gives float32, so it becomes matrix products.
    """
    double = type(graph)()
    double.versions.CopyFrom(graph.versions)
    scalars = _arithmetic_scalars(graph)
    for node in graph.node:
        if node.op.startswith("FusedBatchNorm"):
            _batch_norm(double, node)
            continue
        if node.op == "ResizeBilinear":
            splice_resize(double, node)
            continue
        copy = double.node.add()
        copy.CopyFrom(node)
        if node.op == "Const" and node.attr["dtype"].type == FLOAT:
            values = tensorflow().make_ndarray(node.attr["value"].tensor)
            exact = np.float64(as_written(values.reshape(())[()])) if node.name in scalars else None
            constant(copy, values.astype(np.float64) if exact is None else np.full(values.shape, exact))
            continue
        for value in copy.attr.values():
            if value.type == FLOAT:
                value.type = DOUBLE
    return double


def as_written(value: np.float32) -> float:
    """The constant as the code had it: the root of 2 or 1/2, a small fraction, or the shortest decimal of ``value``."""
    if not np.isfinite(value):
        return float(value)
    for root in (math.sqrt(2), math.sqrt(0.5)):  # of gelu
        if np.float32(root) == value:
            return root
    fraction = Fraction(float(value)).limit_denominator(LARGEST_DENOMINATOR)
    if np.float32(fraction.numerator / fraction.denominator) == value:
        return fraction.numerator / fraction.denominator
    return float(np.format_float_positional(value, unique=True, trim="0"))


def _arithmetic_scalars(graph: Any) -> set[str]:
    """Scalar constants that are not weights: operands of additions, multiplications and the like."""
    arithmetic = ("Add", "AddV2", "Sub", "Mul", "RealDiv", "Maximum", "Minimum")
    taken = {source.split(":")[0] for node in graph.node if node.op in arithmetic for source in node.input}
    single = set()
    for node in graph.node:
        if node.op == "Const" and node.name in taken:
            sides = [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
            if all(side == 1 for side in sides):
                single.add(node.name)
    return single


def _batch_norm(graph: Any, node: Any) -> None:
    """``x * factor + (offset - mean * factor)``, factor = scale / sqrt(variance + epsilon), under the node's name."""
    image, scale, offset, mean, variance = list(node.input)[:5]
    epsilon = as_written(np.float32(node.attr["epsilon"].f))
    at = f"{node.name}/float64"

    def add(name: str, operation: str, *inputs: str) -> str:
        made = graph.node.add(name=name, op=operation, input=inputs)
        made.attr["T"].type = DOUBLE
        return name

    constant(graph.node.add(name=f"{at}/epsilon"), np.float64(epsilon))
    widened = add(f"{at}/widened", "AddV2", variance, f"{at}/epsilon")
    factor = add(f"{at}/factor", "Mul", add(f"{at}/rsqrt", "Rsqrt", widened), scale)
    shift = add(f"{at}/shift", "Sub", offset, add(f"{at}/mean", "Mul", mean, factor))
    add(node.name, "AddV2", add(f"{at}/scaled", "Mul", image, factor), shift)


def pooling_everything(graph: Any, name: str, window: tuple[int, ...]) -> Any:
    """``graph`` with the average pooling ``name`` over the whole map, unless its ``window`` covers that already.

    A stored graph pools with a window for its training size; at other sizes the mean over the map is meant.
    """
    pool = next((node for node in graph.node if node.name == name and node.op == "AvgPool"), None)
    if pool is None or tuple(pool.attr["ksize"].list.i[1:3]) == window:
        return graph
    changed = type(graph)()
    changed.CopyFrom(graph)
    node = next(node for node in changed.node if node.name == name)
    dtype = node.attr["T"].type
    constant(changed.node.add(name=f"{name}/axes"), np.array([1, 2], np.int32))
    node.op = "Mean"
    node.input.append(f"{name}/axes")
    node.attr.clear()
    node.attr["T"].type = dtype
    node.attr["Tidx"].type = 3  # DT_INT32
    node.attr["keep_dims"].b = True
    return changed
