"""A program as a ``.tflite``: float, or with the integers that its source was quantised to. NHWC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from porter.errors import ArtifactError
from porter.exports.onnx_model import Size
from porter.exports.operations import IMAGE, LINEAR, Operation, Program
from porter.mapping.ranges import Range, levels
from porter.network.spec import ACTIVATIONS
from porter.sources.tflite_writer import FUSED, SAME, VALID, Constant, Step, tflite_bytes


def tflite_model(program: Program, size: Size, ranges: Mapping[str, Range] | None = None, gate: float = 1 / 6) -> bytes:
    """The classifier as a file: images (N, H, W, channels) float32 -> (N, classes) logits.

    With ``ranges``, by module or entry of the state dict, it computes 8 bits as its source did: uint8 images and
    predictions (N, classes), both in levels; ``gate`` is then the constant that it multiplies by. Raises
    ArtifactError where a range is missing.
    """
    writer = _Writer(program, size, ranges or {}, gate)
    return writer.bytes()


class _Writer:
    """Tensors and operators, in the making."""

    def __init__(self, program: Program, size: Size, ranges: Mapping[str, Range], gate: float) -> None:
        self.program, self.ranges, self.gate = program, ranges, gate
        by_channel = any(isinstance(limits.unit, list) for limits in ranges.values())
        # Kernels with a scale for each channel are those of int8
        self.dtype, self.lowest = ("int8", -128) if by_channel else ("uint8", 0)
        self.tensors: list[Constant] = []
        self.steps: list[Step] = []
        self.at: dict[str, int] = {}  # value -> the position of its tensor
        self.at[IMAGE] = self._computed(IMAGE, (-1, *size, program.channels), "input")

    def bytes(self) -> bytes:
        """The file."""
        for operation in self.program.operations:
            self._operation(operation)
        value = self.at[self.program.operations[-1].output]
        shape = (-1, self.tensors[value].shape[-1])
        output = self._add(self.tensors[value]._replace(name="output", shape=shape))
        self._step("reshape", [value, self._constant("output/shape", np.array(shape, np.int32))], output)
        if self.ranges:  # as the authors' files; the kernel asks for these levels
            predictions = Constant("predictions", shape, self.dtype, None, (1 / 256,), (self.lowest,))
            output = self._add(predictions)
            self._step("softmax", [output - 2], output, beta=1.0)
        return tflite_bytes(self.tensors, self.steps, self.at[IMAGE], output)

    def _operation(self, operation: Operation) -> None:
        inputs = [self.at[name] for name in operation.inputs]
        if operation.kind == "flatten":  # layers behind it are 1x1 convolutions here
            self.at[operation.output] = inputs[0]
        elif operation.weight is not None:
            self.at[operation.output] = self._convolution(operation, inputs[0])
        elif operation.kind == "mean":
            self.at[operation.output] = self._mean(operation, inputs[0])
        else:
            kind = {"multiply": "mul", "add": "add"}[operation.kind]
            output = self._computed(operation.output, self.tensors[inputs[0]].shape, operation.module)
            self._step(kind, inputs, output)
            self.at[operation.output] = output

    def _convolution(self, operation: Operation, given: int) -> int:
        """A convolution with what follows it."""
        assert operation.weight is not None
        name, stride, activation = operation.output, operation.stride, operation.activation
        before = self.tensors[given].shape
        shape = (-1, -(-before[1] // stride), -(-before[2] // stride), len(operation.weight))
        forms = None if activation is None or activation == "gate" else ACTIVATIONS[activation]
        fused = forms is not None and forms.fused
        separate = activation is not None and not fused
        module = operation.before if separate else operation.module
        made = self._computed(f"{name}/{LINEAR}" if separate else name, shape, module)
        inputs = [given, *self._weights(operation, given, module)]
        options: dict[str, Any] = {"padding": SAME, "stride_w": stride, "stride_h": stride}
        options |= {"dilation_w": operation.dilation, "dilation_h": operation.dilation}
        options["fused"] = FUSED[forms.tflite if forms and fused else None]
        if operation.groups > 1:
            self._step("depthwise_conv_2d", inputs, made, depth_multiplier=1, **options)
        else:
            self._step("conv_2d", inputs, made, **options)
        if activation == "gate":
            return self._gate(operation, made)
        if forms is None or fused:
            return made
        output = self._computed(name, shape, operation.module)
        self._step(forms.tflite, [made], output)
        return output

    def _gate(self, operation: Operation, given: int) -> int:
        """relu6(x + 3) times a constant, which TensorFlow Lite has no operator for."""
        shape = self.tensors[given].shape
        shifted = self._computed(f"{operation.output}/relu6", shape, f"{operation.module}.relu6")
        three = self._scalar(f"{operation.output}/three", 3.0)
        self._step("add", [given, three], shifted, fused=FUSED[None if self.ranges else "relu6"])
        output = self._computed(operation.output, shape, operation.module)
        slope = self._scalar(f"{operation.output}/slope", self.gate)
        self._step("mul", [shifted, slope], output, fused=FUSED[None])
        return output

    def _mean(self, operation: Operation, given: int) -> int:
        shape = self.tensors[given].shape
        output = self._computed(operation.output, (-1, 1, 1, shape[-1]), operation.module)
        limits = self.ranges.get(operation.module)
        if limits is not None and limits.input_scale is None:  # averaged in the levels of its input
            options = {"padding": VALID, "stride_w": 1, "stride_h": 1, "filter_w": shape[2], "filter_h": shape[1]}
            self._step("average_pool_2d", [given], output, **options)
        else:
            axes = self._constant(f"{operation.output}/axes", np.array([1, 2], np.int32))
            self._step("mean", [given, axes], output, keep_dims=True)
        return output

    def _weights(self, operation: Operation, given: int, made: str) -> list[int]:
        """Weight (OHWI, or 1HWO of a depthwise convolution) and bias; integers where there are ranges.

        ``made`` is the module whose range the output has.
        """
        assert operation.weight is not None
        assert operation.bias is not None
        weight = operation.weight.reshape(*operation.weight.shape[:2], *operation.weight.shape[2:] or (1, 1))
        axis = 3 if operation.groups > 1 else 0  # of outputs
        weight = weight.transpose(1, 2, 3, 0) if axis else weight.transpose(0, 2, 3, 1)
        names = f"{operation.output}/weight", f"{operation.output}/bias"
        if not self.ranges:
            return [self._constant(names[0], weight), self._constant(names[1], operation.bias)]
        [given_scale] = self.tensors[given].scales
        units = self._range(made).unit
        if isinstance(units, list):  # a scale for each output, 0 in the middle
            scales, zero = tuple(unit / given_scale for unit in units), 0
        else:
            scale, zero = levels(self._range(f"{operation.layer}.weight"))
            scales, zero = (scale,), zero + self.lowest
        by_output = np.array(scales).reshape(-1, *[1] * (3 - axis))
        stored = np.round(weight / by_output) + zero
        stored = np.clip(stored, self.lowest, self.lowest + 255).astype(self.dtype)
        products = np.float32(given_scale) * np.array(scales, np.float32)
        bias = np.round(operation.bias.astype(np.float64) / products).astype(np.int32)
        zeros = (zero,) * len(scales)
        return [
            self._add(Constant(names[0], stored.shape, self.dtype, stored, scales, zeros, axis)),
            self._add(Constant(names[1], bias.shape, "int32", bias, tuple(map(float, products)), (0,) * len(scales))),
        ]

    def _scalar(self, name: str, value: float) -> int:
        """A positive number; as 8 bits, the highest level."""
        if not self.ranges:
            return self._constant(name, np.array(value, np.float32))
        highest = np.array(self.lowest + 255, self.dtype)
        return self._add(Constant(name, (), self.dtype, highest, (value / 255,), (self.lowest,)))

    def _constant(self, name: str, values: np.ndarray) -> int:
        return self._add(Constant(name, values.shape, values.dtype.name, values))

    def _computed(self, name: str, shape: tuple[int, ...], module: str) -> int:
        """What is computed: float32, or levels of the range of ``module``."""
        if not self.ranges:
            return self._add(Constant(name, shape, "float32"))
        scale, zero = levels(self._range(module))
        return self._add(Constant(name, shape, self.dtype, None, (scale,), (zero + self.lowest,)))

    def _range(self, name: str) -> Range:
        if name not in self.ranges:
            raise ArtifactError(
                f"no range of {name}: training with fake quantisation knows fewer than an integer .tflite needs"
            )
        return self.ranges[name]

    def _add(self, tensor: Constant) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _step(self, kind: str, inputs: list[int], output: int, **options: Any) -> None:
        self.steps.append(Step(kind, inputs, [output], options))
