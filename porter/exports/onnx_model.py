"""A program as an ONNX model, written without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from porter.architecture.padding import same_padding
from porter.errors import ArtifactError
from porter.exports.operations import IMAGE, Operation, Program

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Size = tuple[int, int]  # height, width in pixels

# The first with an operator for h-swish is 14. 17 is what runtimes of 2022 and later take; nothing here needs more
OPSET, IR_VERSION = 17, 8
ACTIVATIONS = {"relu": "Relu", "hard_swish": "HardSwish"}
# relu6(x + 3) / 6 as ONNX defines HardSigmoid: max(0, min(1, alpha * x + beta))
GATE = {"alpha": 1 / 6, "beta": 0.5}


def onnx_model(program: Program, size: Size | None, values: Sequence[str] | None = None) -> ModelProto:
    """``program`` as a model: ``image`` (N, channels, H, W) float32 -> its outputs, or the ``values`` asked for.

    N is free. With a ``size``, padding is written in numbers; without, H and W are free too. The same program gives
    the same bytes. Raises ArtifactError where the package is missing.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ArtifactError(f"ONNX models need pip install 'mnv3-port[onnx]' ({error})") from error
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    shapes: dict[str, list[int | str]] = {IMAGE: ["batch", program.channels, *(size or ("height", "width"))]}

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))

    for operation in program.operations:
        output, made = operation.output, operation.output
        if operation.activation:
            made = f"{output}/linear"
        weights = []
        for part, array in (("weight", operation.weight), ("bias", operation.bias)):
            if array is not None:
                weights.append(f"{output}/{part}")
                constants.append(numpy_helper.from_array(array, weights[-1]))
        inputs = [*operation.inputs, *weights]
        before = shapes[operation.inputs[0]]
        shapes[output] = _shape_after(operation, before)
        if operation.kind == "convolution":
            node("Conv", inputs, made, **_convolution(operation, before[2:]))
        elif operation.kind == "dense":
            node("Gemm", inputs, made, transB=1)
        else:
            kinds = {"mean": "GlobalAveragePool", "flatten": "Flatten", "multiply": "Mul", "add": "Add"}
            node(kinds[operation.kind], inputs, made)
        if operation.activation == "gate":
            node("HardSigmoid", [made], output, **GATE)
        elif operation.activation:
            node(ACTIVATIONS[operation.activation], [made], output)
    graph = helper.make_graph(
        nodes,
        "mobilenet_v3",
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shapes[IMAGE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in values or program.outputs],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="mnv3-port", opset_imports=[opset], ir_version=IR_VERSION)


def _convolution(operation: Operation, sides: Sequence[int | str]) -> dict[str, Any]:
    """The attributes of a convolution with SAME padding, on a map with ``sides``."""
    assert operation.weight is not None
    kernel, stride, dilation = operation.weight.shape[2:], operation.stride, operation.dilation
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [stride] * 2, "group": operation.groups}
    if dilation > 1:
        attributes["dilations"] = [dilation] * 2
    if kernel == (1, 1) and stride == 1:
        return attributes
    numbers = [side for side in sides if isinstance(side, int)]
    if len(numbers) < len(sides):
        return attributes | {"auto_pad": "SAME_UPPER"}  # the odd pixel at the end, as TensorFlow's
    (top, bottom), (left, right) = (
        same_padding(side, k, stride, dilation) for side, k in zip(numbers, kernel, strict=True)
    )
    return attributes | {"pads": [top, left, bottom, right]}


def _shape_after(operation: Operation, shape: list[int | str]) -> list[int | str]:
    """The shape of what ``operation`` makes of ``shape``; free sides are named after the value."""
    batch, channels, *sides = shape
    if operation.weight is not None:
        channels = operation.weight.shape[0]
    if operation.kind in ("flatten", "dense"):
        return [batch, channels]
    if operation.kind == "mean":
        return [batch, channels, 1, 1]
    stride, axes = operation.stride, ("height", "width")
    sides = [
        -(-side // stride) if isinstance(side, int) else f"{operation.output} {axis}"
        for side, axis in zip(sides, axes, strict=True)
    ]
    return [batch, channels, *sides]
