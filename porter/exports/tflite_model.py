"""A program as a ``.tflite``: float, or with the integers that its source was quantised to. NHWC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from porter.errors import ArtifactError
from porter.exports.program import Program
from porter.mapping.ranges import Range, levels
from porter.network.detection import Detection
from porter.network.network import TIMM_GATE
from porter.network.node import IMAGE, Node, Size, map_sizes
from porter.network.nodes import LOGITS, anchors
from porter.network.spec import TAIL_ACTIVATIONS
from porter.sources.stored_graph import SELU
from porter.sources.tflite_writer import FUSED, SAME, VALID, NewOperator, NewTensor, flexbuffer, tflite_bytes


def tflite_model(
    program: Program,
    size: Size,
    ranges: Mapping[str, Range] | None = None,
    gate: float = TIMM_GATE,
    boxes: bool = False,
    logits: bool = False,
) -> bytes:
    """The program as a file: images (N, H, W, channels) float32 -> its outputs; maps are NHWC.

    With ``ranges``, by module or entry of the state dict, a classifier computes 8 bits as its source did: uint8 images
    and predictions (N, classes), both in levels; ``gate`` is then the constant that it multiplies by. With ``logits``
    it gives those instead of predictions. With ``boxes``, a detector gives those of one image as TensorFlow Lite's own
    operation makes them: boxes (1, 100, 4), classes without the background (1, 100), scores (1, 100), and their number
    (1,). Raises ArtifactError where a range is missing.
    """
    writer = _Writer(program, size, ranges or {}, gate, 1 if boxes else -1)
    for node in program.nodes:
        writer.node(node)
    outputs = writer.boxes(size) if boxes else writer.outputs(logits)
    return tflite_bytes(writer.tensors, writer.steps, writer.at[IMAGE], outputs)


class _Writer:
    """Tensors and operators in the making; ``at`` gives the position of each value's tensor."""

    def __init__(self, program: Program, size: Size, ranges: Mapping[str, Range], gate: float, batch: int) -> None:
        self.program, self.ranges, self.gate, self.batch = program, ranges, gate, batch
        self.sizes = map_sizes(program.nodes, *size)
        by_channel = any(isinstance(limits.unit, list) for limits in ranges.values())
        # Kernels with a scale for each channel are those of int8
        self.dtype, self.lowest = ("int8", -128) if by_channel else ("uint8", 0)
        self.tensors: list[NewTensor] = []
        self.steps: list[NewOperator] = []
        self.at: dict[str, int] = {}
        self.at[IMAGE] = self._computed(IMAGE, (batch, *size, program.channels), "input")

    def outputs(self, logits: bool) -> list[int]:
        """The program's outputs; of a quantised classifier, its predictions, or ``logits``."""
        found = []
        for name in self.program.outputs:
            value = self.at[name]
            if self.tensors[value].shape[1:3] == (1, 1) and self.program.network.head is None:  # (N, classes)
                value = self._reshaped(value, "output", (self.batch, self.tensors[value].shape[-1]))
            found.append(value)
        if self.ranges and not logits:  # as the authors' files; the kernel asks for these levels
            shape = self.tensors[found[0]].shape
            output = self._add(NewTensor("predictions", shape, self.dtype, None, (1 / 256,), (self.lowest,)))
            kind = "softmax" if self.program.network.predictions == "softmax" else "logistic"
            return [self._step(kind, found, output, **({"beta": 1.0} if kind == "softmax" else {}))]
        return found

    def boxes(self, size: Size) -> list[int]:
        """A detector's boxes, by the operation that object_detection's export script adds."""
        head = self.program.network.head
        assert isinstance(head, Detection)
        logits = self.at[LOGITS]
        chances = self._step("logistic", [logits], self._computed("chances", self.tensors[logits].shape, ""))
        of = self._constant("anchors", anchors(self.program.network, *size))
        most = head.MOST_BOXES
        shapes = {"boxes": (1, most, 4), "classes": (1, most), "scores": (1, most), "number": (1,)}
        outputs = [self._add(NewTensor(name, shape, "float32")) for name, shape in shapes.items()]
        y, x, height, width = head.coder
        options = {
            **{"max_detections": most, "detections_per_class": most, "max_classes_per_detection": 1},
            **{"num_classes": self.tensors[logits].shape[-1] - 1, "use_regular_nms": True},
            **{"nms_score_threshold": head.LEAST_SCORE, "nms_iou_threshold": head.OVERLAP},
            **{"y_scale": float(y), "x_scale": float(x), "h_scale": float(height), "w_scale": float(width)},
        }
        inputs = [self.at["encodings"], chances, of]
        self.steps.append(NewOperator("TFLite_Detection_PostProcess", inputs, outputs, {"custom": flexbuffer(options)}))
        return outputs

    def node(self, node: Node) -> None:
        """The operators of ``node``."""
        self.at[node.name] = self._made(node, [self.at[name] for name in node.inputs])

    def _made(self, node: Node, inputs: Sequence[int]) -> int:
        given, name, module = inputs[0], node.name, node.module
        shape = self.tensors[given].shape
        if node.operation == "flatten":  # layers behind it are 1x1 convolutions here
            row = (self.batch, 1, 1, int(np.prod(shape[1:])))
            return given if node.window == (1, 1) else self._reshaped(given, name, row)
        if node.operation == "batch_norm":
            parts = self.program.weights[name]._asdict().items()
            factor, offset = (self._constant(f"{name}/{part}", values) for part, values in parts)
            scaled = self._computed(f"{name}/scaled", shape, "")
            self._step("mul", [given, factor], scaled, fused=FUSED[None])
            return self._step("add", [scaled, offset], self._computed(name, shape, module), fused=FUSED[None])
        if node.layer:
            return self._convolution(node, given)
        if node.operation == "activation":
            return self._activated(node, given)
        if node.operation == "mean":
            return self._mean(node, given)
        if node.operation == "max":
            options = {"padding": VALID, "stride_w": 1, "stride_h": 1, "filter_w": shape[2], "filter_h": shape[1]}
            output = self._computed(name, (self.batch, 1, 1, shape[-1]), module)
            return self._step("max_pool_2d", inputs, output, **options)
        if node.operation == "pool":
            windows = zip(shape[1:3], node.window, strict=True)
            height, width = (min(side, most) for side, most in windows)
            options = {"stride_w": node.step[1], "stride_h": node.step[0], "filter_w": width, "filter_h": height}
            return self._step("average_pool_2d", inputs, self._map(node, shape[-1]), padding=VALID, **options)
        if node.operation == "resize":
            sides = self._constant(f"{name}/size", np.array(self.sizes[name], np.int32))
            return self._step("resize_bilinear", [given, sides], self._map(node, shape[-1]), align_corners=True)
        if node.operation == "rows":
            rows = int(np.prod(shape[1:])) // node.values
            return self._reshaped(given, name, (self.batch, rows, node.values))
        if node.operation == "concat":
            rows = sum(self.tensors[value].shape[1] for value in inputs)
            output = self._computed(name, (self.batch, rows, shape[-1]), module)
            return self._step("concatenation", inputs, output, axis=1)
        kind = {"multiply": "mul", "add": "add"}[node.operation]
        return self._step(kind, inputs, self._computed(name, shape, module))

    def _map(self, node: Node, channels: int) -> int:
        return self._computed(node.name, (self.batch, *self.sizes[node.name], channels), node.module)

    def _reshaped(self, value: int, name: str, shape: tuple[int, ...]) -> int:
        output = self._add(self.tensors[value]._replace(name=name, shape=shape))
        return self._step("reshape", [value, self._constant(f"{name}/shape", np.array(shape, np.int32))], output)

    def _convolution(self, node: Node, given: int) -> int:
        """A convolution with what follows it."""
        name, stride, activation = node.name, node.stride, node.activation
        fused = activation is not None and activation != "gate" and TAIL_ACTIVATIONS[activation].in_convolution
        separate = activation is not None and not fused
        module = (node.norm or node.layer) if separate else node.module
        shape = (self.batch, *self.sizes[name], node.shape[0])
        made = self._computed(f"{name}/linear" if separate else name, shape, module)
        inputs = [given, *self._weights(node, given, module)]
        options: dict[str, Any] = {"padding": SAME, "stride_w": stride, "stride_h": stride}
        options |= {"dilation_w": node.dilation, "dilation_h": node.dilation}
        options["fused"] = FUSED[activation if fused else None]
        if node.groups > 1:
            self._step("depthwise_conv_2d", inputs, made, depth_multiplier=1, **options)
        else:
            self._step("conv_2d", inputs, made, **options)
        return self._activated(node, made) if separate else made

    def _activated(self, node: Node, given: int) -> int:
        """What the activation of ``node`` makes of a value."""
        shape = self.tensors[given].shape
        if node.activation == "gate":  # relu6(x + 3) times a constant, which TensorFlow Lite has no operator for
            shifted = self._computed(f"{node.name}/relu6", shape, f"{node.module}.relu6")
            three = self._scalar(f"{node.name}/three", 3.0)
            self._step("add", [given, three], shifted, fused=FUSED[None if self.ranges else "relu6"])
            output = self._computed(node.name, shape, node.module)
            slope = self._scalar(f"{node.name}/slope", self.gate)
            return self._step("mul", [shifted, slope], output, fused=FUSED[None])
        assert node.activation is not None
        output = self._computed(node.name, shape, node.module)
        kind = TAIL_ACTIVATIONS[node.activation].tflite
        if node.activation == "silu":
            chance = self._step(kind, [given], self._computed(f"{node.name}/sigmoid", shape, ""))
            return self._step("mul", [given, chance], output, fused=FUSED[None])
        if node.activation == "selu":  # a sum of relu and elu, since TensorFlow Lite has no operator for it
            parts = []
            for kind, number in SELU.items():
                part = self._step(kind, [given], self._computed(f"{node.name}/{kind}", shape, ""))
                factor = self._scalar(f"{node.name}/{kind} factor", number)
                scaled = self._computed(f"{node.name}/{kind} scaled", shape, "")
                parts.append(self._step("mul", [part, factor], scaled, fused=FUSED[None]))
            return self._step("add", parts, output, fused=FUSED[None])
        options = {"alpha": node.slope} if node.slope else {}
        return self._step(kind, [given], output, **options)

    def _mean(self, node: Node, given: int) -> int:
        shape = self.tensors[given].shape
        output = self._computed(node.name, (self.batch, 1, 1, shape[-1]), node.module)
        limits = self.ranges.get(node.module)
        if limits is not None and limits.input_scale is None:  # averaged in the levels of its input
            options = {"padding": VALID, "stride_w": 1, "stride_h": 1, "filter_w": shape[2], "filter_h": shape[1]}
            return self._step("average_pool_2d", [given], output, **options)
        if not self.ranges:  # both of LiteRT's kernels add all positions in one float32: first along each row
            rows = self._computed(f"{node.name}/rows", (*shape[:2], 1, shape[-1]), node.module)
            for axis, ends in ((2, (given, rows)), (1, (rows, output))):
                axes = self._constant(f"{node.name}/axis {axis}", np.array([axis], np.int32))
                self._step("mean", [ends[0], axes], ends[1], keep_dims=True)
            return output
        axes = self._constant(f"{node.name}/axes", np.array([1, 2], np.int32))
        if limits is not None and limits.axes_dropped:  # another kernel
            flat = self._computed(f"{node.name}/flat", (self.batch, shape[-1]), node.module)
            self._step("mean", [given, axes], flat, keep_dims=False)
            return self._reshaped(flat, node.name, (self.batch, 1, 1, shape[-1]))
        return self._step("mean", [given, axes], output, keep_dims=True)

    def _weights(self, node: Node, given: int, made: str) -> list[int]:
        """Weight (OHWI, or 1HWO of a depthwise convolution) and bias; integers where there are ranges.

        ``made`` is the module whose range the output has.
        """
        weight, bias = self.program.weights[node.name]
        weight = weight.reshape(*weight.shape[:2], *weight.shape[2:] or (1, 1))
        axis = 3 if node.groups > 1 else 0  # of outputs
        weight = weight.transpose(1, 2, 3, 0) if axis else weight.transpose(0, 2, 3, 1)
        names = f"{node.name}/weight", f"{node.name}/bias"
        if not self.ranges:
            return [self._constant(names[0], weight), self._constant(names[1], bias)]
        [given_scale] = self.tensors[given].scales
        units = self._range(made).unit
        if isinstance(units, list):  # a scale for each output, 0 in the middle
            scales, zero = tuple(unit / given_scale for unit in units), 0
        else:
            scale, zero = levels(self._range(f"{node.layer}.weight"))
            scales, zero = (scale,), zero + self.lowest
        by_output = np.array(scales).reshape(-1, *[1] * (3 - axis))
        stored = np.round(weight / by_output) + zero
        stored = np.clip(stored, self.lowest, self.lowest + 255).astype(self.dtype)
        products = np.float32(given_scale) * np.array(scales, np.float32)
        rounded = np.round(bias.astype(np.float64) / products).astype(np.int32)
        zeros = (zero,) * len(scales)
        return [
            self._add(NewTensor(names[0], stored.shape, self.dtype, stored, scales, zeros, axis)),
            self._add(
                NewTensor(names[1], rounded.shape, "int32", rounded, tuple(map(float, products)), (0,) * len(scales))
            ),
        ]

    def _scalar(self, name: str, value: float) -> int:
        """A positive number; as 8 bits, the highest level."""
        if not self.ranges:
            return self._constant(name, np.array(value, np.float32))
        highest = np.array(self.lowest + 255, self.dtype)
        return self._add(NewTensor(name, (), self.dtype, highest, (value / 255,), (self.lowest,)))

    def _constant(self, name: str, values: np.ndarray) -> int:
        return self._add(NewTensor(name, values.shape, values.dtype.name, values))

    def _computed(self, name: str, shape: tuple[int, ...], module: str) -> int:
        """What is computed: float32, or levels of the range of ``module``."""
        if not self.ranges:
            return self._add(NewTensor(name, shape, "float32"))
        scale, zero = levels(self._range(module))
        return self._add(NewTensor(name, shape, self.dtype, None, (scale,), (zero + self.lowest,)))

    def _range(self, name: str) -> Range:
        if name not in self.ranges:
            raise ArtifactError(
                f"no range of {name}: training with fake quantisation knows fewer than an integer .tflite needs"
            )
        return self.ranges[name]

    def _add(self, tensor: NewTensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _step(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """One operator; its output."""
        self.steps.append(NewOperator(kind, inputs, [output], options))
        return output
