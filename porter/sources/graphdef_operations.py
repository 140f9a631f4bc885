"""What a GraphDef states besides its weights: its nodes in the words of porter.sources.stored_graph."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from porter.errors import CheckpointError
from porter.sources import protos
from porter.sources.bounds import MOST_BEHIND
from porter.sources.dtypes import FLOATS, as_decimal, name_of
from porter.sources.stored_graph import BATCH_STATISTICS, Sides, StoredGraph, StoredOperation
from porter.sources.variable import Variable

LAYERS = {"Conv2D": "convolution", "DepthwiseConv2dNative": "depthwise", "MatMul": "dense"}
FUSED = {"_FusedConv2D": "Conv2D", "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative", "_FusedMatMul": "MatMul"}
NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
VARIABLES = ("VariableV2", "Variable", "VarHandleOp")
CALLS = ("PartitionedCall", "StatefulPartitionedCall")
ROUNDS = (
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVarsPerChannel"),
    *("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4"),
)
RESHAPES = ("Reshape", "Squeeze", "ExpandDims")
SAME_VALUE = ("Identity", "IdentityN", "StopGradient", "CheckNumerics", "PreventGradient", "Snapshot", "EnsureShape")
ARITHMETIC = {
    "Add": "add", "AddV2": "add", "Sub": "subtract", "Mul": "multiply", "RealDiv": "divide", "Div": "divide",
    "Minimum": "minimum", "Maximum": "maximum",
}  # fmt: skip
# Nodes of which only the first input is data
ON_ONE = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh", "Elu": "elu",
    "Selu": "selu", "LeakyRelu": "leaky_relu", "AvgPool": "average_pool", "MaxPool": "max_pool", "Mean": "mean",
    "Max": "max",
    "Reshape": "flatten", "Squeeze": "flatten", "ExpandDims": "flatten", "Pad": "pad", "ResizeBilinear": "resize",
    **dict.fromkeys(ROUNDS, "fake_quant"),
}  # fmt: skip
# What a graph may compute of constants before an image reaches it, such as the variances of Keras's Normalization
OF_CONSTANTS: dict[str, Callable[..., float]] = {
    "Sqrt": math.sqrt, "Maximum": max, "Minimum": min, "Neg": operator.neg, "Add": operator.add, "AddV2": operator.add,
    "Sub": operator.sub, "Mul": operator.mul, "RealDiv": operator.truediv,
}  # fmt: skip
# What a dilated convolution may hold between SpaceToBatchND and BatchToSpaceND
BY_POSITION = (*LAYERS, *NORMS, *ARITHMETIC, "BiasAdd", "Relu", "Relu6")
FUSED_ACTIVATIONS = ("Relu", "Relu6", "Elu", "Sigmoid", "Tanh", "LeakyRelu")
# What a training graph has behind its network, and a serving one beside it
NO_VALUES = (
    *("Shape", "ShapeN", "Size", "Rank", "Assert", "NoOp", "Print", "PrintV2", "IsVariableInitialized", "L2Loss"),
    *("InTopK", "InTopKV2"),
)
NO_VALUES_IN = ("Grad", "Backprop", "Apply", "Assign", "Save", "Restore", "Summary", "CrossEntropy")
# Of the bodies of all calls: a function that calls another twice, and that a third, grows without end
MOST_NODES, MOST_TEXT, MOST_DEPTH = 1 << 16, 1 << 24, 32  # nodes, characters, calls within calls
MOST_CONSTANT, MOST_VALUES = 1 << 12, 1 << 20  # values of a constant of arithmetic, and of all
MOST_SIDE = 1 << 12  # of a window, stride or dilation; DeepLab's largest is 65
PIXELS = 4  # the dtype uint8
MISSING = protos.AttrValue()


class GraphNode(NamedTuple):
    """A node; ``inputs`` are ``node`` or ``node:1``, without those of control. ``attributes`` are the proto's."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Any

    def attribute(self, key: bytes) -> Any:
        """The AttrValue of that key, MISSING where there is none: it is false, empty or 0 in every field."""
        return next((attribute.value for attribute in self.attributes if attribute.key == key), MISSING)


class Program(NamedTuple):
    """The nodes that compute a graph's outputs, with the bodies of functions in place of calls, in no order.

    ``variables`` are names of variables by the node that holds them.
    """

    nodes: list[GraphNode]
    variables: dict[str, str]


class _Weight(NamedTuple):
    name: str
    rank: int
    constant: Variable | None  # what holds the values in the graph itself


def stored_graph(
    graph: Any,
    file: str,
    constant: Callable[[GraphNode], Variable | None],
    outputs: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> StoredGraph:
    """The operations of a GraphDef. Raises CheckpointError.

    ``outputs`` are references to values; without any they are what the last layers lead to. ``constant`` gives the
    variable of a Const node. ``names`` are those of variables by node, where they differ from the graph's.
    """
    return _Reader(graph, file, constant, names or {}).read(outputs)


def graph_nodes(nodes: Iterable[Any]) -> Iterable[GraphNode]:
    """The nodes of a GraphDef."""
    for node in nodes:
        inputs = tuple(name.decode(errors="replace") for name in node.input if not name.startswith(b"^"))
        yield GraphNode(node.name.decode(errors="replace"), node.op.decode(errors="replace"), inputs, node.attr)


class _Reader:
    """``values``: node -> value. ``batched``: node -> the block that SpaceToBatchND has laid its pixels out by, and
    whether it put zeros before them, as SAME has it.
    """

    def __init__(
        self, graph: Any, file: str, constant: Callable[[GraphNode], Variable | None], names: Mapping[str, str]
    ) -> None:
        self.file, self.constant, self.renamed = file, constant, names
        self.nodes = {node.name: node for node in graph_nodes(graph.node)}
        self.functions = {function.signature.name: function for function in graph.library.function}
        self.operations: dict[str, StoredOperation] = {}
        self.values: dict[str, str] = {}
        self.fixed: set[str] = set()  # nodes that no image reaches
        self.batched: dict[str, tuple[Sides, bool]] = {}
        self.leads: dict[str, str] = {}  # reference -> node whose value it has
        self.results: dict[str, tuple[str, ...]] = {}  # call -> references to what its function returns
        self.depths: dict[str, int] = {}  # of calls within calls
        self.leaves: dict[str, _Weight | None] = {}
        self.numbers: dict[str, tuple[float, ...]] = {}
        self.left = [MOST_NODES, MOST_TEXT, MOST_VALUES]
        self.takes_pixels = False

    def read(self, outputs: Sequence[str]) -> StoredGraph:
        outputs = outputs or self._last()
        for node in self._in_order(outputs):
            self._node(node)
        found = dict.fromkeys(self.values[name] for name in map(self._lead, outputs) if name in self.values)
        return StoredGraph(list(self.operations.values()), tuple(found), self.takes_pixels, program=self._program)

    def _program(self) -> Program:
        """What TensorFlow runs for the operations that were read, under the same names."""
        waiting = list(self.operations)
        found: dict[str, GraphNode] = {}
        while waiting:
            name = waiting.pop()
            node = self.nodes.get(name)
            if node is None or name in found:
                continue
            found[name] = node._replace(inputs=tuple(map(self._called, node.inputs)))
            waiting += [reference.partition(":")[0] for reference in found[name].inputs]
        leaves = {name: self._leaf(name) for name, node in found.items() if node.op in VARIABLES}
        return Program(list(found.values()), {name: leaf.name for name, leaf in leaves.items() if leaf})

    def _called(self, reference: str) -> str:
        """``reference``, or what a called function or an identity returns there."""
        for _ in range(MOST_BEHIND):
            node = self.nodes.get(reference.partition(":")[0])
            passed = node is not None and node.op in (*CALLS, *SAME_VALUE)
            following = self._following(reference) if passed else None
            if following is None:
                break
            reference = following
        return reference

    def _last(self) -> tuple[str, ...]:
        """The nodes behind a layer whose value nothing takes."""
        users: defaultdict[str, list[str]] = defaultdict(list)
        found: list[str] = []
        ops = {node.op for node in self.nodes.values()}
        without = {op for op in ops if op in NO_VALUES or any(part in op for part in NO_VALUES_IN)}
        for node in self.nodes.values():
            if node.op in without or "gradients" in node.name:
                continue
            if node.op in LAYERS or node.op in FUSED:
                found.append(node.name)
            for reference in node.inputs:
                name, _, output = reference.partition(":")
                given = self.nodes.get(name)
                if given and not (given.op in NORMS and output not in ("", "0")):  # others are for training
                    users[name].append(node.name)
        behind = {*found}
        for name in found:  # which grows
            new = [user for user in users[name] if user not in behind]
            behind.update(new)
            found += new
        return tuple(name for name in found if not users[name])

    def _in_order(self, outputs: Sequence[str]) -> Iterable[GraphNode]:
        """The nodes that ``outputs`` need, each after its inputs; a loop's way back is left out."""
        begun: set[str] = set()
        waiting = [(self._lead(reference), False) for reference in reversed(outputs)]
        while waiting:
            name, ready = waiting.pop()
            node = self.nodes.get(name)
            if node is None:
                continue
            if ready:
                yield node
            elif name not in begun:
                begun.add(name)
                waiting.append((name, True))
                waiting += [(self._lead(reference), False) for reference in reversed(self._data(node))]

    def _data(self, node: GraphNode) -> tuple[str, ...]:
        single = node.op in ON_ONE or node.op in LAYERS or node.op in FUSED or node.op in NORMS or node.op == "BiasAdd"
        if single or node.op in ("SpaceToBatchND", "BatchToSpaceND"):
            return node.inputs[:1]
        return node.inputs[:-1] if node.op == "ConcatV2" else node.inputs

    def _lead(self, reference: str) -> str:
        """The node whose value ``reference`` has, through identities and calls of functions."""
        passed = []
        while reference not in self.leads:
            passed.append(reference)
            self.leads[reference] = reference.partition(":")[0]  # where it comes back to itself
            following = self._following(reference)
            if following is None:
                break
            reference = following
        for one in passed:
            self.leads[one] = self.leads[reference]
        return self.leads[reference]

    def _following(self, reference: str) -> str | None:
        name, _, output = reference.partition(":")
        node, number = self.nodes.get(name), int(output) if output.isdecimal() and len(output) < 6 else 0
        if node is None:
            return None
        if node.op in CALLS:
            results = self._call(node)
            return results[number] if number < len(results) else None
        if node.op == "IdentityN":
            return node.inputs[number] if number < len(node.inputs) else None
        same = node.op in SAME_VALUE or node.op == "ReadVariableOp"
        if node.op == "Cast":
            before = node.attribute(b"SrcT")
            known = before is MISSING or name_of(before.type) in (*FLOATS, "uint8")
            same = known and name_of(node.attribute(b"DstT").type) in FLOATS
            self.takes_pixels |= same and before.type == PIXELS
        return node.inputs[0] if same and node.inputs else None

    def _call(self, node: GraphNode) -> tuple[str, ...]:
        """What a call gives; the function's nodes join the graph."""
        function = self.functions.get(node.attribute(b"f").func.name)
        if node.name in self.results or function is None:
            return self.results.get(node.name, ())
        self.results[node.name] = ()  # where it calls itself
        arguments = dict(zip((arg.name.decode(errors="replace") for arg in function.signature.input_arg), node.inputs))
        depth = self.depths.get(node.name, 0) + 1
        names = sum(len(one.name) + len(node.name) + sum(map(len, one.input)) for one in function.node_def)
        self.left[0] -= len(function.node_def)
        self.left[1] -= names + sum(map(len, node.inputs)) * len(function.node_def)
        if min(self.left) < 0 or depth > MOST_DEPTH:
            raise CheckpointError(f"{self.file}: the calls of its functions have no end; damaged or hostile")
        body = list(graph_nodes(function.node_def))
        own = {one.name: one.name if one.name not in self.nodes else f"{node.name}/{one.name}" for one in body}

        def outside(reference: str) -> str:
            name, *rest = reference.split(":")  # `node:output argument:number`, or an argument
            return arguments.get(name, "") if name in arguments else f"{own.get(name, '')}:{rest[-1] if rest else 0}"

        for one in body:
            self.depths[own[one.name]] = depth
            self.nodes[own[one.name]] = GraphNode(
                own[one.name], one.op, tuple(map(outside, one.inputs)), one.attributes
            )
        returned = {one.key: outside(one.value.decode(errors="replace")) for one in function.ret}
        self.results[node.name] = tuple(returned.get(arg.name, "") for arg in function.signature.output_arg)
        return self.results[node.name]

    def _add(self, node: GraphNode, kind: str, inputs: Iterable[str], **fields: Any) -> None:
        self.operations[node.name] = replace(StoredOperation(node.name, kind, tuple(inputs)), **fields)
        self.values[node.name] = node.name

    def _node(self, node: GraphNode) -> None:
        given = [self._lead(reference) for reference in self._data(node)]
        inputs = [self.values[name] for name in given if name in self.values]
        if node.op == "Const" or node.op in VARIABLES or (given and self.fixed.issuperset(given)):
            self.fixed.add(node.name)
            return
        if node.op in ("Placeholder", "PlaceholderWithDefault"):
            self._image(node)
        elif node.op in LAYERS or node.op in FUSED:
            self._layer(node, inputs)
        elif node.op in NORMS:
            self._norm(node, inputs)
        elif node.op == "BiasAdd" and (bias := self._weight(node, 1, (1,))):
            self._add(node, "bias", inputs, weights={"bias": bias})
        elif node.op in ARITHMETIC and len(given) == 2 and inputs:
            self._arithmetic(node, given, inputs)
        elif node.op in ("SpaceToBatchND", "BatchToSpaceND") and inputs and self._laid_out(node, given[0]):
            self.values[node.name] = inputs[0]
        elif node.op in ON_ONE and inputs:
            self._on_one(node, inputs)
        else:
            self._add(node, "concat" if node.op == "ConcatV2" else node.op, inputs)
        if given and given[0] in self.batched and node.op in BY_POSITION:
            self.batched[node.name] = self.batched[given[0]]

    def _image(self, node: GraphNode) -> None:
        sides = protos.shape_of(node.attribute(b"shape").shape)
        if len(sides) not in (0, 4):
            self._add(node, node.op, ())
            return
        height, width = (max(side, 0) for side in sides[1:3]) if sides else (0, 0)
        self._add(node, "image", (), window=(height, width))
        self.takes_pixels |= node.attribute(b"dtype").type == PIXELS

    def _sides(self, node: GraphNode, key: bytes) -> Sides:
        """Height and width of an attribute that lists one number for each axis."""
        value = node.attribute(key)
        listed = [1, 1, 1, 1] if value is MISSING else list(value.list.i)
        if len(listed) != 4 or not all(1 <= side <= MOST_SIDE for side in listed):
            what = f"{node.name}: {key.decode()} {listed[:8]}"
            raise CheckpointError(f"{self.file}: {what}; the graph is damaged")
        return (listed[2], listed[3]) if node.attribute(b"data_format").s == b"NCHW" else (listed[1], listed[2])

    def _layer(self, node: GraphNode, inputs: list[str]) -> None:
        op = FUSED.get(node.op, node.op)
        weight = self._weight(node, 1, (2,) if op == "MatMul" else (4,))
        if weight is None:
            self._add(node, node.op, inputs)
            return
        fields: dict[str, Any] = {}
        if op != "MatMul":
            block, zeros = self.batched.get(self._lead(node.inputs[0]), ((1, 1), False))
            dilation = self._sides(node, b"dilations")
            fields["stride"] = self._sides(node, b"strides")
            fields["dilation"] = dilation[0] * block[0], dilation[1] * block[1]
            fields["padding"] = "same" if zeros else _padding(node)
        weights, behind = {"weight": weight}, []
        for what in (name.decode(errors="replace") for name in node.attribute(b"fused_ops").list.s):
            if what == "BiasAdd" and (bias := self._weight(node, 2, (1,))):
                weights["bias"] = bias
            else:
                behind.append(what)
        self._add(node, LAYERS[op], inputs, weights=weights, **fields)
        for what in behind:
            name = f"{self.values[node.name]}/{what}"
            kind, slope = ON_ONE[what] if what in FUSED_ACTIVATIONS else what, node.attribute(b"leakyrelu_alpha").f
            last = StoredOperation(name, kind, (self.values[node.name],), slope=slope)
            self.operations[name], self.values[node.name] = last, name

    def _norm(self, node: GraphNode, inputs: list[str]) -> None:
        epsilon, stated = node.attribute(b"epsilon"), node.attribute(b"is_training")
        training = stated is MISSING or stated.b
        roles = ("gamma", "beta") if training else ("gamma", "beta", "mean", "variance")
        found = {role: self._weight(node, position, (1,)) for position, role in enumerate(roles, 1)}
        weights = {role: name for role, name in found.items() if name}
        number = as_decimal(1e-4 if epsilon is MISSING else epsilon.f)
        self._add(node, "batch_norm", inputs, weights=weights, epsilon=number, training=training)

    def _weight(self, node: GraphNode, position: int, ranks: tuple[int, ...]) -> str | None:
        """The variable at an input, through what rounds, scales or reshapes it."""
        waiting = [node.inputs[position]] if position < len(node.inputs) else []
        for _ in range(MOST_BEHIND):
            if not waiting:
                return None
            found = self._leaf(waiting[-1])
            if found and found.rank in ranks:
                return found.name
            behind = self.nodes.get(self._lead(waiting.pop()))
            if behind and behind.op in (*ROUNDS, *RESHAPES):
                waiting.append(behind.inputs[0] if behind.inputs else "")
            elif behind and behind.op == "Mul":  # folded with a batch norm
                waiting += behind.inputs[::-1]
        return None

    def _leaf(self, reference: str) -> _Weight | None:
        """The variable or constant that ``reference`` is."""
        node = self.nodes.get(self._lead(reference))
        if node is not None and node.name not in self.leaves:
            self.leaves[node.name] = self._read_leaf(node)
        return self.leaves[node.name] if node is not None else None

    def _read_leaf(self, node: GraphNode) -> _Weight | None:
        if node.op == "Const":
            variable = self.constant(node)
            return _Weight(variable.name, len(variable.shape), variable) if variable else None
        if node.op not in VARIABLES:
            return None
        shape, shared = node.attribute(b"shape"), node.attribute(b"shared_name").s
        plain = shared.decode(errors="replace") if node.op == "VarHandleOp" else ""
        rank = -1 if shape is MISSING else len(shape.shape.dim)
        return _Weight(self.renamed.get(node.name, plain or node.name), rank, None)

    def _number(self, reference: str, depth: int = 0) -> tuple[float, ...]:
        """The values of a constant, one or one for each channel; empty if it is none."""
        node = self.nodes.get(self._lead(reference))
        if node and node.op in OF_CONSTANTS and node.name not in self.numbers and depth < MOST_BEHIND:
            self.numbers[node.name] = ()  # where it needs itself
            self.numbers[node.name] = self._computed(OF_CONSTANTS[node.op], node.inputs, depth)
        if node and node.op in OF_CONSTANTS:
            return self.numbers.get(node.name, ())
        if node and node.op in (*RESHAPES, "Cast") and node.inputs:
            reference = node.inputs[0]
        found = self._leaf(reference)
        variable = found.constant if found else None
        if variable is None or variable.dtype not in (*FLOATS, "int32"):
            return ()
        count = math.prod(variable.shape)
        if count != max((1, *variable.shape[-1:])) or not 0 < count <= MOST_CONSTANT:
            return ()
        if variable.name not in self.numbers:
            self.left[2] -= count
            known = self.left[2] >= 0
            self.numbers[variable.name] = tuple(variable.read().reshape(-1).astype(float).tolist()) if known else ()
        return self.numbers[variable.name]

    def _computed(self, operation: Callable[..., float], inputs: tuple[str, ...], depth: int) -> tuple[float, ...]:
        """The values of ``operation`` on constants; empty where they are none, or have no such value."""
        of = [self._number(one, depth + 1) for one in inputs]
        count = max(map(len, of), default=0)
        if not all(of) or {*map(len, of)} - {1, count}:
            return ()
        self.left[2] -= count
        try:
            rows = zip(*(numbers * (count // len(numbers)) for numbers in of), strict=True)
            return tuple(operation(*row) for row in rows) if self.left[2] >= 0 else ()
        except (ValueError, TypeError, ArithmeticError):  # a root of -1, another number of inputs, a division by 0
            return ()

    def _arithmetic(self, node: GraphNode, given: list[str], inputs: list[str]) -> None:
        kind = ARITHMETIC[node.op]
        if len(inputs) == 2:
            self._add(node, kind, inputs)
            return
        first = given[0] not in self.values
        reference, other = node.inputs if first else node.inputs[::-1]
        values, shaped = self._number(reference), self.nodes.get(self._lead(reference))
        if shaped and shaped.op in RESHAPES and shaped.inputs:  # Keras adds a bias of one value by its shape
            reference = shaped.inputs[0]
        leaf = self._leaf(reference)
        before = self.nodes[self._lead(other)]
        if kind == "add" and (weights := self._folded_norm(reference)):
            epsilon = weights.pop("epsilon")
            inner = [name for name in map(self._lead, before.inputs) if name in self.values]
            scaled = before.op == "Mul" and len(inner) == 1  # x * (gamma / sqrt(variance + epsilon))
            self._add(
                node, "batch_norm", [self.values[inner[0]]] if scaled else inputs, weights=weights, epsilon=epsilon
            )
        elif kind == "add" and leaf and leaf.rank == 1 and (before.op in LAYERS or not values):
            self._add(node, "bias", inputs, weights={"bias": leaf.name})
        elif values:
            self._add(node, kind, inputs, constant=values, constant_first=first and kind in ("subtract", "divide"))
        else:
            self._add(node, f"{node.op} with {leaf.name if leaf else 'what other nodes compute'}", inputs)

    def _folded_norm(self, reference: str) -> dict[str, Any] | None:
        """The batch norm whose shift is ``reference``: beta - mean * gamma / sqrt(variance + epsilon)."""
        shift = self._of_kind(reference, "Sub")
        product = self._of_kind(shift.inputs[1] if shift else reference, "Mul")
        beta = self._leaf(shift.inputs[0]) if shift else None
        if product is None or (shift and beta is None):
            return None
        for mean, scale in (product.inputs, product.inputs[::-1]):
            if shift is None:  # -mean * gamma / sqrt(variance + epsilon), without a beta
                negative = self._of_kind(mean, "Neg")
                if negative is None:
                    continue
                mean = negative.inputs[0]
            mul = self._of_kind(scale, "Mul")
            parts = (mul.inputs, mul.inputs[::-1]) if mul else (("", scale),)
            for gamma, root in parts:
                rsqrt = self._of_kind(root, "Rsqrt")
                inner = self._of_kind(rsqrt.inputs[0], "Add", "AddV2") if rsqrt else None
                leaves = {"gamma": gamma, "mean": mean, "variance": inner.inputs[0] if inner else ""}
                found = {role: leaf.name for role, at in leaves.items() if at and (leaf := self._leaf(at))}
                epsilon = self._number(inner.inputs[1]) if inner else ()
                if len(epsilon) == 1 and {"mean", "variance"} <= {*found}:
                    found |= {"beta": beta.name} if beta else {}
                    return {**found, "epsilon": as_decimal(epsilon[0])}
        return None

    def _of_kind(self, reference: str, *ops: str) -> GraphNode | None:
        node = self.nodes.get(self._lead(reference))
        return (
            node if node and node.op in ops and len(node.inputs) == (1 if node.op in ("Rsqrt", "Neg") else 2) else None
        )

    def _laid_out(self, node: GraphNode, given: str) -> bool:
        """Whether the node only lays pixels out for a dilated convolution, or back."""
        block, edges = self._whole_numbers(node, 1), self._whole_numbers(node, 2)
        if len(block) != 2 or min(block) < 1:
            return False
        sides = block[0], block[1]
        if node.op == "BatchToSpaceND":
            return given in self.batched and self.batched[given][0] == sides
        # Edges that depend on the image's size are not constant, and only SAME has those
        self.batched[node.name] = sides, len(edges) != 4 or bool(edges[0] or edges[2])
        return True

    def _on_one(self, node: GraphNode, inputs: list[str]) -> None:
        kind, fields = ON_ONE[node.op], dict[str, Any]()
        if node.op in ("AvgPool", "MaxPool"):
            fields = {"window": self._sides(node, b"ksize"), "stride": self._sides(node, b"strides")}
            fields["padding"] = _padding(node)
            if fields["window"] == fields["stride"] == (1, 1):  # slim's last one: it does nothing
                self.values[node.name] = inputs[0]
                return
        elif node.op in ("Mean", "Max"):
            axes = self._whole_numbers(node, 1)
            if node.op == "Mean" and {axis % 4 for axis in axes} == {0, 1, 2}:
                kind = BATCH_STATISTICS
            elif {axis % 4 for axis in axes} != {1, 2} or node.attribute(b"data_format") is not MISSING:
                kind = f"{node.op} over the axes {[*axes[:8]]}"
        elif node.op == "Pad":
            edges = self._whole_numbers(node, 1)
            if len(edges) == 8 and not any(edges[:2] + edges[6:]):
                fields["padding"] = (edges[2], edges[3]), (edges[4], edges[5])
            else:
                kind = node.op
        elif node.op == "ResizeBilinear":
            size = self._whole_numbers(node, 1)
            fields |= {"window": size if len(size) == 2 else (0, 0), "corners": node.attribute(b"align_corners").b}
        elif node.op == "LeakyRelu":
            alpha = node.attribute(b"alpha")
            fields["slope"] = 0.2 if alpha is MISSING else alpha.f
        self._add(node, kind, inputs, **fields)

    def _whole_numbers(self, node: GraphNode, position: int) -> tuple[int, ...]:
        """Those of a small constant at an input."""
        found = self._leaf(node.inputs[position]) if len(node.inputs) > position else None
        variable = found.constant if found else None
        if variable is None or variable.dtype not in ("int32", "int64") or math.prod(variable.shape) > 8:
            return ()
        return tuple(int(value) for value in variable.read().reshape(-1))


def _padding(node: GraphNode) -> str | tuple[Sides, Sides]:
    """As a StoredOperation has it."""
    padding, edges = node.attribute(b"padding").s, list(node.attribute(b"explicit_paddings").list.i)
    if padding == b"EXPLICIT" and len(edges) == 8:
        return (edges[2], edges[3]), (edges[4], edges[5])
    return "same" if padding == b"SAME" else "valid"
