"""What a ``.tflite`` states besides its weights: its operators in the words of porter.sources.stored_graph."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from porter.sources.integer_pixels import pixel_levels
from porter.sources.stored_graph import Sides, StoredGraph, StoredOperation
from porter.sources.tflite import LEVELS, WITH_WEIGHTS, constant, values_of
from porter.sources.tflite_graph import SIZES, Graph, Operator, Tensor
from porter.sources.tflite_metadata import Normalization, normalization

KINDS = {
    "conv_2d": "convolution", "depthwise_conv_2d": "depthwise", "fully_connected": "dense", "logistic": "sigmoid",
    "sub": "subtract", "mul": "multiply", "div": "divide", "average_pool_2d": "average_pool",
    "max_pool_2d": "max_pool", "squeeze": "flatten", "expand_dims": "flatten", "dequantize": "quantize",
    "resize_bilinear": "resize", "concatenation": "concat",
}  # fmt: skip
ARITHMETIC = ("add", "sub", "mul", "div", "minimum", "maximum")
# What gives each position of a map from that position alone, so that a dilated convolution may hold it
BY_POSITION = (*ARITHMETIC, "relu", "relu6", "logistic", "hard_swish", "quantize", "dequantize", "fake_quant")
ACTIVATIONS = ("relu", "relu6", "logistic", "tanh", "hard_swish", "softmax")
SIDES = (1, 2)  # the axes of height and width
MOST_VALUES = 1 << 20  # of all constants of arithmetic


class _Batched(NamedTuple):
    """A value between ``space_to_batch_nd`` and ``batch_to_space_nd``; ``zeros`` before it, of height and width."""

    block: Sides
    zeros: Sides


def stored_graph(graph: Graph, path: Path) -> StoredGraph:
    """The operations of the ``graph`` in the file ``path``. Raises CheckpointError."""
    return _Reader(graph, path).read()


class _Reader:
    """``names``: tensor -> value. ``batched``: tensor -> how its pixels are laid out, where they are."""

    def __init__(self, graph: Graph, path: Path) -> None:
        self.graph, self.path = graph, path
        self.operations: dict[str, StoredOperation] = {}
        self.names: dict[int, str] = {}
        self.batched: dict[int, _Batched] = {}
        self.constants: dict[int, tuple[float, ...]] = {}  # operators share them
        self.left = MOST_VALUES  # tensors may share their bytes
        self.number = -1  # of the operator with weights
        self.users: defaultdict[int, set[str]] = defaultdict(set)  # tensor -> kinds, "shift" for a constant added
        for operator in graph.operators:
            shift = operator.kind == "add" and any(graph.tensors[i].size for i in operator.inputs if i >= 0)
            for i in operator.inputs:
                self.users[i].add("shift" if shift else operator.kind)

    def read(self) -> StoredGraph:
        graph = self.graph
        levels = pixel_levels(graph, self.path)
        takes_pixels = bool(levels)
        scaling = normalization(graph.metadata, str(self.path))
        for position in graph.inputs:
            takes_pixels |= self._image(position, scaling)
        for operator in graph.operators:
            self._operator(operator)
        outputs = [self.names[position] for position in graph.outputs if position in self.names]
        return StoredGraph(list(self.operations.values()), outputs, takes_pixels, levels)

    def _add(self, name: str, kind: str, *inputs: str, **fields: object) -> str:
        """The name of the new value: ``name``, made unique."""
        unique, number = name, len(self.operations)
        while unique in self.operations:
            unique, number = f"{name}:{number}", number + 1
        self.operations[unique] = replace(StoredOperation(unique, kind, inputs), **fields)
        return unique

    def _image(self, position: int, scaling: Normalization | None) -> bool:
        """Add an input, and how its pixels become the values that it stands for. True if it says so."""
        tensor = self.graph.tensors[position]
        sides = tensor.shape[1:3] if len(tensor.shape) == 4 else (0, 0)
        value = given = self._add(tensor.name, "image", window=sides)
        zero: tuple[float, ...] = (0.0,)
        scale: tuple[float, ...] = (1.0,)
        said = tensor.dtype in LEVELS
        if said:
            quantised = len(tensor.scales) == 1
            zero = (float((tensor.zero_points[0] if quantised else 0) - LEVELS[tensor.dtype][0]),)
            scale = tensor.scales if quantised else scale
        elif scaling and tensor.dtype == "float32":
            said, zero, scale = True, scaling.mean, scaling.std
        if any(zero):
            value = self._add(f"{given}/zero", "subtract", value, constant=zero)
        if set(scale) != {1.0}:
            value = self._add(
                f"{given}/scale", "multiply" if tensor.dtype in LEVELS else "divide", value, constant=scale
            )
        self.names[position] = value
        return said

    def _operator(self, operator: Operator) -> None:
        tensors, kind = self.graph.tensors, operator.kind
        self.number += kind in WITH_WEIGHTS
        inputs = [self.names[i] for i in operator.inputs if i in self.names]
        if not operator.outputs or (kind == "dequantize" and not inputs):  # a constant's
            return
        output, given = operator.outputs[0], operator.inputs[0] if operator.inputs else -1
        if self._left_out(operator):
            self.names[output] = self.names[given]
            return
        fields: dict[str, object] = {}
        said = self._kind(operator, fields)
        if said == "mean over the axes [1]" and inputs and len(tensors[given].shape) == 4:  # perhaps of means of rows
            before = self.operations[inputs[0]]
            if before.kind == "mean over the axes [2]":
                said, inputs = "mean", list(before.inputs)
        if given in self.batched and kind not in WITH_WEIGHTS:
            if kind in BY_POSITION:
                self.batched[output] = self.batched[given]
            else:
                said = f"{kind} within a dilated convolution"
        for position in operator.outputs:
            name = self._add(tensors[position].name, said, *inputs, **fields)
            activation = operator.fused or self._clamp(operator, position)
            self.names[position] = self._add(f"{name}/{activation}", activation, name) if activation else name

    def _left_out(self, operator: Operator) -> bool:
        """Whether it does nothing to values, or only lays them out for a dilated convolution."""
        given, kind = operator.inputs[0] if operator.inputs else -1, operator.kind
        if given not in self.names or len(operator.outputs) != 1:
            return False
        before, after = self.graph.tensors[given], self.graph.tensors[operator.outputs[0]]
        if kind == "cast":
            return after.dtype.startswith("float") and before.dtype.startswith(("float", "uint8"))
        if kind in ("average_pool_2d", "max_pool_2d") and not operator.fused:
            return {operator.options[side] for side in ("filter_h", "filter_w", "stride_h", "stride_w")} == {1}
        if kind not in ("space_to_batch_nd", "batch_to_space_nd"):
            return False
        block, edges = (self._whole_numbers(operator, position) for position in (1, 2))
        if len(block) != 2 or len(edges) != 4 or min(block) < 1:
            return False
        sides = block[0], block[1]
        if kind == "batch_to_space_nd":
            return given in self.batched and self.batched[given].block == sides
        self.batched[operator.outputs[0]] = _Batched(sides, (edges[0], edges[2]))
        return given not in self.batched

    def _kind(self, operator: Operator, fields: dict[str, object]) -> str:
        """Its word; what else it states becomes ``fields``."""
        kind, options = operator.kind, operator.options
        said = KINDS.get(kind, kind)
        before, after = (self.graph.tensors[ends[0]] if ends else None for ends in (operator.inputs, operator.outputs))
        if "stride_h" in options:
            fields["stride"] = int(options["stride_h"]), int(options["stride_w"])
            fields["padding"] = "valid" if options["padding"] else "same"
        if kind in WITH_WEIGHTS:
            fields["weights"] = {"weight": f"{self.number}/weights", "bias": f"{self.number}/bias"}
            return self._dilated(operator, said, fields) if "dilation_h" in options else said
        if kind in ("average_pool_2d", "max_pool_2d"):
            fields["window"] = int(options["filter_h"]), int(options["filter_w"])
            if before and before.shape[1:3] == fields["window"] and options["padding"]:
                return "mean" if kind == "average_pool_2d" else "max"
        elif kind in ("mean", "reduce_max"):
            axes = {axis % 4 for axis in self._whole_numbers(operator, 1)}
            whole = before is not None and len(before.shape) == 4 and axes == {*SIDES}
            return ("mean" if kind == "mean" else "max") if whole else f"{kind} over the axes {sorted(axes)}"
        elif kind in ARITHMETIC:
            return self._arithmetic(operator, said, fields)
        elif kind == "reshape":
            kept = [[side for side in tensor.shape if side != 1] for tensor in (before, after) if tensor]
            return "flatten" if (after and len(after.shape) <= 2) or kept[0] == kept[-1] else kind
        elif kind == "softmax" and options["beta"] != 1:
            return f"softmax of {options['beta']:g} times the values"
        elif kind == "gelu" and options["approximate"]:
            return "gelu by tanh"
        elif kind in ("leaky_relu", "hard_swish"):
            fields["slope"] = options["alpha"] if kind == "leaky_relu" else 1 / 6
        elif kind == "resize_bilinear" and after and len(after.shape) == 4:
            fields |= {"window": after.shape[1:3], "corners": bool(options["align_corners"])}
        elif kind == "pad":
            edges = self._whole_numbers(operator, 1)
            if len(edges) == 8 and not any(edges[:2] + edges[6:]):
                fields["padding"] = (edges[2], edges[3]), (edges[4], edges[5])
            else:
                return f"pad by {[*edges[:8]]}"
        return said

    def _dilated(self, operator: Operator, said: str, fields: dict[str, object]) -> str:
        """A convolution's dilation, with that of the layout of its pixels."""
        options, given = operator.options, operator.inputs[0]
        dilation = int(options["dilation_h"]), int(options["dilation_w"])
        kernel = self.graph.tensors[operator.inputs[1]].shape[1:3]
        if given in self.batched:
            block, zeros = self.batched[given]
            dilation = dilation[0] * block[0], dilation[1] * block[1]
            same = tuple((side - 1) * step // 2 for side, step in zip(kernel, dilation, strict=False))
            if options["padding"] and zeros in (same, (0, 0)):
                fields["padding"] = "same" if zeros == same else "valid"
            elif kernel != (1, 1):
                said = f"{said} dilated by {block}, after zeros {zeros}"
            self.batched[operator.outputs[0]] = _Batched(block, (0, 0))
        fields["dilation"] = dilation
        return said

    def _arithmetic(self, operator: Operator, said: str, fields: dict[str, object]) -> str:
        for position, i in enumerate(operator.inputs):
            tensor = constant(self.graph, operator.inputs, position)
            if tensor is None or i in self.names:
                continue
            values = self._values(operator, position) if _by_channel(tensor) else ()
            if not values or fields.get("constant"):
                return f"{said} with a constant of shape {list(tensor.shape)}"
            fields["constant"] = values
            fields["constant_first"] = position == 0 and operator.kind in ("sub", "div")
        return said

    def _clamp(self, operator: Operator, position: int) -> str | None:
        """The activation that a quantised value's range stands for: the authors' files state it by that alone.

        Where another activation follows, a range from 0 is the values' own.
        """
        tensor, users = self.graph.tensors[position], self.users[position]
        if tensor.dtype not in LEVELS or len(tensor.scales) != 1 or not users or users & {*ACTIVATIONS, "shift"}:
            return None
        low, high = ((level - tensor.zero_points[0]) * tensor.scales[0] for level in LEVELS[tensor.dtype])
        shifted = operator.kind == "add" and any(self.graph.tensors[i].size for i in operator.inputs if i >= 0)
        if low or not (shifted or operator.kind in WITH_WEIGHTS):
            return None
        below = high < 6 + tensor.scales[0] / 2
        # Values that never reach 6 have a narrower range; without an addition a narrow one is relu's
        return "relu6" if below and (shifted or high > 6 - tensor.scales[0] / 2) else "relu"

    def _values(self, operator: Operator, position: int) -> tuple[float, ...]:
        """Those of a small constant; empty if it is none."""
        tensor = constant(self.graph, operator.inputs, position)
        if tensor is None or tensor.dtype not in SIZES:
            return ()
        index = operator.inputs[position]
        if index not in self.constants:
            self.left -= math.prod(tensor.shape)
            if self.left < 0:
                return ()
            self.constants[index] = tuple(values_of(tensor, self.path).reshape(-1).tolist())
        return self.constants[index]

    def _whole_numbers(self, operator: Operator, position: int) -> tuple[int, ...]:
        tensor = constant(self.graph, operator.inputs, position)
        known = tensor is not None and tensor.dtype in ("int32", "int64") and not tensor.scales
        return tuple(int(value) for value in self._values(operator, position)) if known else ()


def _by_channel(tensor: Tensor) -> bool:
    """Whether it is one number, or one for each channel."""
    return math.prod(tensor.shape) == max((1, *tensor.shape[-1:]))
