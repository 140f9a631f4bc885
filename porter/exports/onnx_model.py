"""A program as an ONNX model, written without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from porter.errors import ArtifactError
from porter.exports.operations import IMAGE, LINEAR, Operation, Program
from porter.network.padding import same_padding
from porter.network.spec import ACTIVATIONS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Size = tuple[int, int]  # height, width in pixels

# The first with an operator for h-swish is 14. 17 is what runtimes of 2022 and later take; nothing here needs more
OPSET, IR_VERSION = 17, 8
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
            made = f"{output}/{LINEAR}"
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
        elif operation.kind == "pool":
            window = [min(side, most) for side, most in zip(_sides(before), operation.window, strict=True)]
            node("AveragePool", inputs, made, kernel_shape=window, strides=operation.strides)
            shapes[output] = [
                *before[:2],
                *((side - w) // s + 1 for side, w, s in zip(_sides(before), window, operation.strides, strict=True)),
            ]
        elif operation.kind == "resize":
            shapes[output] = [*before[:2], *shapes[operation.inputs[1]][2:]]
            _resize(node, constants, operation, before, shapes[output])
        else:
            kinds = {"mean": "GlobalAveragePool", "flatten": "Flatten", "multiply": "Mul", "add": "Add"}
            node(kinds[operation.kind], inputs, made)
        shapes[made] = shapes[output]
        if operation.activation == "gate":
            node("HardSigmoid", [made], output, **GATE)
        elif operation.activation:
            forms = ACTIVATIONS[operation.activation]
            limits = [f"{forms.onnx}/{limit:g}" for limit in forms.limits]
            known = {constant.name for constant in constants}
            for name, limit in zip(limits, forms.limits, strict=True):
                if name not in known:
                    constants.append(numpy_helper.from_array(np.array(limit, np.float32), name))
            node(forms.onnx, [made, *limits], output)
    graph = helper.make_graph(
        nodes,
        "mobilenet_v3",
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shapes[IMAGE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in values or program.outputs],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="mnv3-port", opset_imports=[opset], ir_version=IR_VERSION)


def _sides(shape: Sequence[int | str]) -> list[int]:
    """Height and width of a map. Raises ArtifactError where they are free."""
    sides = [side for side in shape[2:] if isinstance(side, int)]
    if len(sides) != 2:
        raise ArtifactError("the graph of a segmenter is for images of one size; name the size")
    return sides


def _resize(
    node: Callable[..., None],
    constants: list[TensorProto],
    operation: Operation,
    before: Sequence[int | str],
    after: Sequence[int | str],
) -> None:
    """A resize by scales, which leave the batch free: those that give the size exactly."""
    from onnx import numpy_helper

    scales = [1.0, 1.0, *(to / of for to, of in zip(_sides(after), _sides(before), strict=True))]
    # A scale in float32 may fall below the quotient, and the size is rounded down
    scales = [float(np.nextafter(np.float32(scale), np.float32(np.inf))) if scale != 1 else 1.0 for scale in scales]
    name = f"{operation.output}/scales"
    constants.append(numpy_helper.from_array(np.array(scales, np.float32), name))
    mode = {"coordinate_transformation_mode": "align_corners", "mode": "linear"}
    node("Resize", [operation.inputs[0], "", name], operation.output, **mode)


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
