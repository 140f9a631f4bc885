"""A program as an ONNX model, written without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from porter.errors import ArtifactError
from porter.exports.program import Constants, Program
from porter.network.detection import Detection
from porter.network.network import TIMM_GATE, Network
from porter.network.node import IMAGE, Node, Size, map_sizes, same_padding
from porter.network.nodes import anchors
from porter.network.spec import TAIL_ACTIVATIONS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

FreeShape = list[int | str]  # free sides have names

# The first with an operator for h-swish is 14. 17 is what runtimes of 2022 and later take; nothing here needs more
OPSET, IR_VERSION = 17, 8
# relu6(x + 3) / 6 as ONNX defines HardSigmoid: max(0, min(1, alpha * x + beta))
GATE = {"alpha": TIMM_GATE, "beta": 0.5}
LINEAR = "linear"  # below the name of what an activation gives: what it takes


def onnx_model(
    program: Program, size: Size | None, values: Sequence[str] | None = None, boxes: bool = False
) -> ModelProto:
    """``program`` as a model: ``image`` (N, channels, H, W) float32 -> its outputs, or the ``values`` asked for.

    N is free. With a ``size``, padding is written in numbers; without, H and W are free too. With ``boxes``, a
    detector's outputs are those of ``boxes_model``, for one image. The same program gives the same bytes. Raises
    ArtifactError where the package is missing.
    """
    writer = _Writer(size and map_sizes(program.nodes, *size))
    writer.shapes[IMAGE] = [1 if boxes else "batch", program.channels, *(size or ("height", "width"))]
    for node in program.nodes:
        writer.node(node, program.weights.get(node.name))
    if not boxes:
        return writer.model([IMAGE], values or program.outputs)
    assert size is not None
    return writer.model([IMAGE], writer.boxes(program.network, size))


def boxes_model(network: Network, size: Size) -> ModelProto:
    """A detector's post-processing: ``encodings`` (1, N, 4) and ``logits`` (1, N, classes) -> boxes of an image.

    ``boxes`` (D, 4) are top, left, bottom and right over the sides of the image of ``size``, ``classes`` (D,) int64 and
    ``scores`` (D,), highest first. At most 100 of each class and 100 in all, as the detector's configuration says;
    class 0, the background, is left out. Raises ArtifactError where the package is missing.
    """
    writer = _Writer(None)
    writer.shapes |= {"encodings": [1, "anchors", 4], "logits": [1, "anchors", "classes"]}
    return writer.model(["encodings", "logits"], writer.boxes(network, size))


class _Writer:
    """Nodes and constants in the making; ``shapes`` are those of values, ``sizes`` those of maps, None where free."""

    def __init__(self, sizes: Mapping[str, Size] | None) -> None:
        self.sizes = sizes
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shapes: dict[str, FreeShape] = {}

    def model(self, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
        """The model that computes ``outputs``. Raises ArtifactError where the package is missing."""
        from onnx import TensorProto, helper

        def info(name: str) -> Any:
            kind = TensorProto.INT64 if name == "classes" else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, self.shapes[name])

        ends = [info(name) for name in inputs], [info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "mobilenet_v3", *ends, self.constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, producer_name="mnv3-port", opset_imports=[opset], ir_version=IR_VERSION)

    def add(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """One operator; its first output's name. Raises ArtifactError where the package is missing."""
        try:
            from onnx import helper
        except ImportError as error:
            raise ArtifactError(f"ONNX models need pip install 'mnv3-port[onnx]' ({error})") from error

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: Any) -> str:
        """A constant, once under its name."""
        from onnx import numpy_helper

        if all(known.name != name for known in self.constants):
            self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, node: Node, weights: Constants | None) -> None:
        """The operators of ``node``."""
        self.shapes[node.name] = self._shape(node)
        activated = node.activation is not None and node.operation != "activation"
        made = f"{node.name}/{LINEAR}" if activated else node.name
        inputs = list(node.inputs)
        for part, array in weights._asdict().items() if weights else ():
            inputs.append(self.constant(f"{node.name}/{part}", array))
        if node.operation == "convolution":
            self.add("Conv", inputs, made, **self._convolution(node))
        elif node.operation == "batch_norm":
            scaled = self.add("Mul", inputs[:2], f"{made}/scaled")
            self.add("Add", [scaled, inputs[2]], made)
        elif node.operation == "flatten" and node.window != (1, 1):
            moved = self.add("Transpose", inputs, f"{made}/moved", perm=[0, 2, 3, 1])
            self.add("Flatten", [moved], made)
        elif node.operation == "dense":
            self.add("Gemm", inputs, made, transB=1)
        elif node.operation == "activation":
            made = node.inputs[0]
        elif node.operation == "pool":
            window = [min(side, most) for side, most in zip(self._sides(node.inputs[0]), node.window, strict=True)]
            self.add("AveragePool", inputs, made, kernel_shape=window, strides=node.step)
        elif node.operation == "resize":
            self._resize(node)
        elif node.operation == "rows":
            moved = self.add("Transpose", inputs, f"{made}/moved", perm=[0, 2, 3, 1])
            shape = self.constant(f"{made}/shape", np.array([0, -1, node.values], np.int64))
            self.add("Reshape", [moved, shape], made)
        elif node.operation in ("concat", "softmax"):
            self.add({"concat": "Concat", "softmax": "Softmax"}[node.operation], inputs, made, axis=1)
        elif node.operation == "mean":
            # ONNX Runtime's GlobalAveragePool adds all positions in one float32. Where a map is flat, each addition
            # rounds the same way: over 12 x 12 the mean is 3e-6 off, over 129 x 257 4e-4. ReduceMean adds in parts
            self.add("ReduceMean", inputs, made, axes=[2, 3], keepdims=1)
        else:
            kinds = {"max": "GlobalMaxPool", "flatten": "Flatten", "multiply": "Mul", "add": "Add"}
            self.add(kinds[node.operation], inputs, made)
        self.shapes[made] = self.shapes[node.name]
        if node.activation == "gate":
            self.add("HardSigmoid", [made], node.name, **GATE)
        elif node.activation:
            forms = TAIL_ACTIVATIONS[node.activation]
            limits = [self.constant(f"{forms.onnx}/{limit:g}", np.float32(limit)) for limit in forms.limits]
            if node.activation == "gelu":
                self._gelu(made, node.name)
            elif node.activation == "leaky_relu":
                self.add(forms.onnx, [made], node.name, alpha=node.slope)
            elif node.activation == "silu":
                self.add("Mul", [made, self.add(forms.onnx, [made], f"{node.name}/sigmoid")], node.name)
            else:
                self.add(forms.onnx, [made, *limits], node.name)

    def _gelu(self, given: str, output: str) -> None:
        """x * (1 + erf(x / sqrt(2))) / 2: the operator Gelu is of a later OPSET."""
        numbers = {"half root": np.sqrt(0.5), "one": 1, "half": 0.5}
        half_root, one, half = (self.constant(f"gelu/{name}", np.float32(n)) for name, n in numbers.items())
        error = self.add("Erf", [self.add("Mul", [given, half_root], f"{output}/scaled")], f"{output}/erf")
        doubled = self.add("Mul", [given, self.add("Add", [error, one], f"{output}/shifted")], f"{output}/doubled")
        self.add("Mul", [doubled, half], output)

    def boxes(self, network: Network, size: Size) -> list[str]:
        """The operators of ``boxes_model`` behind the values ``encodings`` and ``logits``; names of the outputs."""
        head = network.head
        assert isinstance(head, Detection)
        add, constant = self.add, self.constant

        def ints(*values: int) -> str:
            return constant("ints/" + ",".join(map(str, values)), np.array(values, np.int64))

        def sides(part: int) -> str:
            """One of the four encoded numbers, (1, boxes, 1), over its factor."""
            cut = add("Slice", ["encodings", ints(part), ints(part + 1), ints(2)], f"encoded/{part}")
            return add("Div", [cut, constant(f"coder/{part}", np.float32(head.coder[part]))], f"encoded/{part}/scaled")

        of = anchors(network, *size)[None]
        corners = []
        for axis in (0, 1):  # y and x
            middle_of, extent_of = (constant(f"anchors/{part}", of[..., part : part + 1]) for part in (axis, axis + 2))
            middle = add("Mul", [sides(axis), extent_of], f"moved/{axis}")
            middle = add("Add", [middle, middle_of], f"middle/{axis}")
            half = add("Mul", [add("Exp", [sides(axis + 2)], f"grown/{axis}"), extent_of], f"extent/{axis}")
            half = add("Mul", [half, constant("half", np.float32(0.5))], f"half/{axis}")
            corners += [add("Sub", [middle, half], f"low/{axis}"), add("Add", [middle, half], f"high/{axis}")]
        every = add("Concat", [corners[0], corners[2], corners[1], corners[3]], "boxes/all", axis=2)
        found = add("Slice", ["logits", ints(1), ints(np.iinfo(np.int32).max), ints(2)], "logits/classes")
        chances = add("Transpose", [add("Sigmoid", [found], "chances")], "scores/all", perm=[0, 2, 1])
        limits = [
            constant("most", np.array([head.MOST_BOXES], np.int64)),
            constant("overlap", np.array([head.OVERLAP], np.float32)),
            constant("least", np.array([head.LEAST_SCORE], np.float32)),
        ]
        kept = add("NonMaxSuppression", [every, chances, *limits], "kept")  # (K, 3): image, class, box
        scores = add("GatherND", [chances, kept], "kept/scores")
        count = add("Min", [add("Shape", [scores], "kept/count"), limits[0]], "count")
        add("TopK", [scores, count], "scores", "best", axis=0)
        best = add("Gather", [kept, "best"], "kept/best", axis=0)
        number = add("Gather", [best, constant("column/1", np.int64(1))], "best/class", axis=1)
        add("Add", [number, constant("background", np.int64(1))], "classes")
        box = add("Gather", [best, constant("column/2", np.int64(2))], "best/box", axis=1)
        whole = add("Squeeze", [every, ints(0)], "boxes/one")
        edges = [constant("edge/0", np.float32(0)), constant("edge/1", np.float32(1))]
        add("Clip", [add("Gather", [whole, box], "boxes/best", axis=0), *edges], "boxes")
        self.shapes |= {"boxes": ["found", 4], "classes": ["found"], "scores": ["found"]}
        return ["boxes", "classes", "scores"]

    def _sides(self, value: str) -> Size:
        """Height and width of a map. Raises ArtifactError where they are free."""
        if self.sizes is None:
            raise ArtifactError("the graph of a segmenter is for images of one size; name the size")
        return self.sizes[value]

    def _resize(self, node: Node) -> None:
        """A resize by scales, which leave the batch free: those that give the size exactly."""
        pairs = zip(self._sides(node.name), self._sides(node.inputs[0]), strict=True)
        scales = [1.0, 1.0, *(to / of for to, of in pairs)]
        # A scale in float32 may fall below the quotient, and the size is rounded down
        scales = [float(np.nextafter(np.float32(scale), np.float32(np.inf))) if scale != 1 else 1.0 for scale in scales]
        name = self.constant(f"{node.name}/scales", np.array(scales, np.float32))
        mode = {"coordinate_transformation_mode": "align_corners", "mode": "linear"}
        self.add("Resize", [node.inputs[0], "", name], node.name, **mode)

    def _convolution(self, node: Node) -> dict[str, Any]:
        """The attributes of a convolution with SAME padding."""
        kernel, stride, dilation = node.shape[2:], node.stride, node.dilation
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [stride] * 2, "group": node.groups}
        if dilation > 1:
            attributes["dilations"] = [dilation] * 2
        if kernel == (1, 1) and stride == 1:
            return attributes
        if self.sizes is None and dilation == 1:
            return attributes | {"auto_pad": "SAME_UPPER"}  # the odd pixel at the end, as TensorFlow's
        # ONNX Runtime has no SAME_UPPER with dilations; at stride 1, where they are, the padding fits every size
        sides = zip(self.sizes[node.inputs[0]] if self.sizes else (1, 1), kernel, strict=True)
        (top, bottom), (left, right) = (same_padding(side, k, stride, dilation) for side, k in sides)
        return attributes | {"pads": [top, left, bottom, right]}

    def _shape(self, node: Node) -> FreeShape:
        """The shape of what ``node`` gives; free sides are named after the value."""
        batch, channels, *sides = self.shapes[node.inputs[0]]
        if node.operation == "concat":
            rows = [self.shapes[name][1] for name in node.inputs]
            counted = [row for row in rows if isinstance(row, int)]
            return [batch, sum(counted) if len(counted) == len(rows) else f"{node.name} rows", sides[0]]
        if node.operation == "rows":
            counts = [side for side in (channels, *sides) if isinstance(side, int)]
            free = len(counts) < 3
            return [batch, f"{node.name} rows" if free else int(np.prod(counts)) // node.values, node.values]
        if node.shape:
            channels = node.shape[0]
        if node.operation == "flatten" and isinstance(channels, int):
            channels *= math.prod(node.window)
        if not sides or node.operation in ("flatten", "dense", "softmax"):
            return [batch, channels]
        if self.sizes is not None:
            return [batch, channels, *self.sizes[node.name]]
        if node.operation in ("mean", "max"):
            return [batch, channels, 1, 1]
        return [batch, channels, f"{node.name} height", f"{node.name} width"]
