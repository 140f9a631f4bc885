"""What a file states besides its weights: the operations of its network, in the same words whatever its format."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from porter.sources.graphdef_operations import Program

Sides = tuple[int, int]  # height and width
ACTIVATIONS = (
    *("relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "softmax", "tanh", "elu", "selu", "silu", "gelu"),
    "leaky_relu",
)
WITH_WEIGHTS = ("convolution", "depthwise", "dense")
ROUNDING = ("quantize", "fake_quant")
FLOAT32 = 2.0**-22  # of a constant that was rounded to float32, and computed with once more
# selu as the sum of two activations times numbers, from its alpha and scale as torch.nn.SELU has them
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
SELU = {"relu": SELU_SCALE * (1 - SELU_ALPHA), "elu": SELU_SCALE * SELU_ALPHA}
BATCH_STATISTICS = "batch_statistics"


class StoredOperation(Struct, frozen=True):
    """One operation, and the value that it gives.

    Readers use these words for ``kind``, and the format's own for others: ``image``; with weights ``convolution``,
    ``depthwise``, ``dense``; ``bias``, ``batch_norm``; the activations ``relu``, ``relu6``, ``hard_sigmoid``,
    ``hard_swish``, ``sigmoid``, ``softmax``, ``tanh``, ``elu``, ``selu``, ``silu``, ``gelu``, ``leaky_relu``; ``add``,
    ``subtract``, ``multiply``, ``divide``, ``minimum``, ``maximum``; over the whole map ``mean`` and ``max``;
    ``average_pool`` and ``max_pool`` over ``window``; ``flatten`` for everything that only drops or merges axes of (N,
    H, W, C); ``pad``, ``resize``, ``concat``; of ROUNDING ``fake_quant`` is training's, on floats;
    ``batch_statistics``, the mean of each channel, is a batch norm's in training. What does nothing at
    inference (dropout, identity, casts between floats) is left out.

    An ``image`` has its size as ``window``, zeros where it is free, and so has what a ``resize`` makes. ``name`` is the
    value's, unique in the graph, and the one that messages quote. ``inputs`` are names of values. ``weights`` are
    variables by role: ``weight`` and ``bias``, or ``gamma``, ``beta``, ``mean`` and ``variance``. ``constant`` is the
    second operand of arithmetic where the file holds it: one number, or one for each channel; ``constant_first`` where
    it is the first. ``padding`` is ``same``, ``valid``, or the zeros before and after, of height and width. ``slope``
    is that of a hard sigmoid or hard swish, relu6(x + 3) times it, or of a leaky_relu below 0. ``corners``: a bilinear
    ``resize`` puts corner pixels on corner pixels. ``decay`` is that of a batch norm's statistics in training, None
    where the file does not say. ``training``: a batch norm uses the statistics of each batch, as in training.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    weights: Mapping[str, str] = {}
    constant: tuple[float, ...] = ()
    constant_first: bool = False
    stride: Sides = (1, 1)
    dilation: Sides = (1, 1)
    window: Sides = (0, 0)
    padding: str | tuple[Sides, Sides] = "same"
    epsilon: float = 0.0
    slope: float = 0.0
    corners: bool = False
    decay: float | None = None
    training: bool = False


class StoredGraph:
    """The operations of a file by name, each after its inputs.

    ``outputs`` are names of values. ``takes_pixels`` is true where the file says that its image has values from 0 to
    255 (8-bit inputs, TensorFlow Lite's metadata), and false where it does not say. ``levels`` are the values that the
    first convolution gets for each of 256 pixel values, a row for all channels or one for each, where the file computes
    them in integers; empty elsewhere. ``program`` gives the nodes of a GraphDef that compute the operations.
    """

    def __init__(
        self,
        operations: Sequence[StoredOperation],
        outputs: Sequence[str],
        takes_pixels: bool = False,
        levels: Sequence[Sequence[float]] = (),
        program: Callable[[], Program] | None = None,
    ) -> None:
        self.operations = _recognised({operation.name: operation for operation in operations}, outputs)
        self.outputs, self.takes_pixels, self.levels = tuple(outputs), takes_pixels, levels
        self.program = program

    @property
    def in_training(self) -> bool:
        """Whether batch norms use the statistics of each batch."""
        return any(one.training or one.kind == BATCH_STATISTICS for one in self.operations.values())

    @cached_property
    def users(self) -> Mapping[str, list[StoredOperation]]:
        """The operations that take each value; not those that only take its shape."""
        found: defaultdict[str, list[StoredOperation]] = defaultdict(list)
        for operation in self.operations.values():
            for name in dict.fromkeys(operation.inputs) if operation.kind.lower() != "shape" else ():
                found[name].append(operation)
        return found

    @cached_property
    def by_weight(self) -> Mapping[str, StoredOperation]:
        """The layer that uses each variable as its weight."""
        return {operation.weights["weight"]: operation for operation in self.layers() if operation.weights}

    @cached_property
    def in_order(self) -> list[StoredOperation]:
        """The operations that the outputs need, as late as possible: of several inputs the deepest first.

        So a trunk comes before the side branches that join it later, in whatever order the file has them.
        """
        depths: dict[str, int] = {}
        for operation in self.operations.values():
            depths[operation.name] = 1 + max((depths.get(name, 0) for name in operation.inputs), default=0)
        found: dict[str, StoredOperation] = {}
        waiting = [(name, False) for name in sorted(self.outputs, key=lambda name: depths.get(name, 0))]
        while waiting:
            name, ready = waiting.pop()
            if name in found or name not in self.operations:
                continue
            operation = self.operations[name]
            if ready:
                found[name] = operation
                continue
            waiting.append((name, True))
            waiting += [(one, False) for one in sorted(operation.inputs, key=lambda one: depths.get(one, 0))]
        return list(found.values())

    def path(self, last: StoredOperation) -> list[StoredOperation]:
        """The operations between the image and ``last``, each the only input of the next; from the image on.

        It begins later where an operation has several inputs, or none that the graph knows.
        """
        found: list[StoredOperation] = []
        while len(last.inputs) == 1 and last.inputs[0] in self.operations and len(found) <= len(self.operations):
            last = self.operations[last.inputs[0]]
            found.append(last)
        return found[::-1]

    def behind(self, operation: StoredOperation) -> list[StoredOperation]:
        """Bias, batch norm, rounding and one activation, as far as nothing else uses the values between."""
        found: list[StoredOperation] = []
        activated = False
        for _ in self.operations:  # at most: operations may go in a circle
            users = self.users.get((found or [operation])[-1].name, [])
            if len(users) != 1:
                break
            [user] = users
            own = user.kind in ("bias", "batch_norm") or (user.constant and len(user.inputs) == 1)
            if user.kind not in ROUNDING and (activated or not (own or user.kind in ACTIVATIONS)):
                break
            activated = activated or user.kind in ACTIVATIONS
            found.append(user)
        return found

    def layers(self) -> Iterator[StoredOperation]:
        """Those of ``in_order`` that have weights."""
        return (operation for operation in self.in_order if operation.kind in WITH_WEIGHTS)


def _recognised(operations: dict[str, StoredOperation], outputs: Sequence[str]) -> dict[str, StoredOperation]:
    """``operations`` with activations in place of the arithmetic that computes them: hard sigmoid, hard swish, silu,
    gelu and selu.
    """
    found: dict[str, StoredOperation] = {}

    def maker(name: str) -> StoredOperation | None:
        """The operation of a value, before it is rounded."""
        operation = found.get(name)
        while operation is not None and operation.kind in ROUNDING and operation.inputs:
            operation = found.get(operation.inputs[0])
        return operation

    def shifted(name: str) -> str | None:
        """x of relu6(x + 3), or the value itself where a convolution's bias may have the 3."""
        relu6 = maker(name)
        if relu6 is None or relu6.kind != "relu6" or not relu6.inputs:
            return None
        inner = maker(relu6.inputs[0])
        if inner is not None and inner.kind == "add" and inner.constant == (3.0,) and len(inner.inputs) == 1:
            return inner.inputs[0]
        return relu6.inputs[0] if inner is not None and inner.kind in (*WITH_WEIGHTS, "bias") else None

    def scaled_by(name: str, factor: float) -> str | None:
        """x of x * factor, or of x / (1 / factor)."""
        by = maker(name)
        if by is None or by.kind not in ("multiply", "divide") or by.constant_first or len(by.constant) != 1:
            return None
        [number] = by.constant
        own = number if by.kind == "multiply" else 1 / number if number else 0.0
        return by.inputs[0] if math.isclose(own, factor, rel_tol=FLOAT32) and len(by.inputs) == 1 else None

    def error_function_of(name: str) -> str | None:
        """x of 1 + erf(x / sqrt(2)), or of erfc(-x / sqrt(2))."""
        by = maker(name)
        error = maker(by.inputs[0]) if by and by.kind == "add" and by.constant == (1.0,) else by
        if error is None or error.kind not in ("Erf", "Erfc") or not error.inputs:
            return None
        x = scaled_by(error.inputs[0], math.sqrt(0.5))
        if error.kind == "Erf":
            return x if error is not by else None
        negative = maker(x) if x else None
        return negative.inputs[0] if negative and negative.kind == "Neg" and negative.inputs and error is by else None

    for name, operation in operations.items():
        found[name] = operation
        if operation.kind == "add" and len(operation.inputs) == 2:
            parts = [(kind, x) for one in operation.inputs for kind in SELU if (x := scaled_by(one, SELU[kind]))]
            sources = {of.inputs for kind, x in parts if (of := maker(x)) and of.kind == kind}
            if len(parts) == 2 and len(sources) == 1:
                found[name] = StoredOperation(name, "selu", sources.pop())
        if operation.kind not in ("multiply", "divide") or operation.constant_first:
            continue
        if len(operation.constant) == 1 and len(operation.inputs) == 1 and operation.constant[0]:
            slope = operation.constant[0] if operation.kind == "multiply" else 1 / operation.constant[0]
            inner = maker(operation.inputs[0])
            if inner is None:
                continue
            if (x := shifted(inner.name)) is not None:
                found[name] = StoredOperation(name, "hard_sigmoid", (x,), slope=slope)
            elif inner.kind == "multiply" and len(inner.inputs) == 2:
                for x, gate in (inner.inputs, inner.inputs[::-1]):
                    if shifted(gate) == x:
                        found[name] = StoredOperation(name, "hard_swish", (x,), slope=slope)
        elif operation.kind == "multiply" and len(operation.inputs) == 2:
            for x, gate in (operation.inputs, operation.inputs[::-1]):
                by = maker(gate)
                of = maker(by.inputs[0]) if by is not None and by.inputs else None
                if by and of and of.kind == "multiply" and of.constant == (1.0,):  # TensorFlow's silu has a factor
                    by = replace(by, inputs=of.inputs)
                if by is not None and by.inputs == (x,) and by.kind in ("hard_sigmoid", "sigmoid"):
                    kind = "hard_swish" if by.kind == "hard_sigmoid" else "silu"
                    found[name] = StoredOperation(name, kind, (x,), slope=by.slope)
                if (halved := scaled_by(x, 0.5)) and halved == error_function_of(gate):
                    found[name] = StoredOperation(name, "gelu", (halved,))
                scaled = maker(x)  # TensorFlow's optimiser moves the constant: (x * 1/6) * relu6(x + 3)
                by_number = scaled is not None and scaled.kind == "multiply" and len(scaled.constant) == 1
                if scaled and by_number and scaled.inputs == (shifted(gate),):
                    found[name] = StoredOperation(name, "hard_swish", scaled.inputs, slope=scaled.constant[0])
    used = set(outputs)
    for operation in reversed(found.values()):
        if operation.name in used:
            used.update(operation.inputs)
    return {name: operation for name, operation in found.items() if name in used}
