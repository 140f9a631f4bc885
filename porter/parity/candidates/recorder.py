"""What a module computes, operation by operation, whatever its classes are called.

A dispatch mode sees every tensor that PyTorch computes, also those of functions and of ``+``. The first run keeps
only a few values of each; those that are asked for afterwards come from another run. So memory holds one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from porter.errors import ParityError, PorterError
from porter.models.build import nhwc
from porter.parity.candidates.candidate import Operation, Output, Recording
from porter.parity.candidates.match import kinds, sampled
from porter.parity.references.reference import thin
from porter.parity.streams import streamed
from porter.text import listed

# Operators that compute nothing. A module may run more of them in one precision than in the other
COPIES = frozenset(("_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "clone", "contiguous"))
TERMINATED = 143  # the command's exit code at SIGTERM, whose handler raises SystemExit
DEEPEST = 8  # of what a module returns: tuples in dicts in tuples

Give = Callable[[tuple[str, Tensor]], None]


class Run:
    """One module in one precision on one batch."""

    def __init__(self, name: str, model: nn.Module, inputs: Tensor, keep: int) -> None:
        self.name, self.model, self.inputs, self.keep = name, model, inputs, keep
        self.changed_input = False
        self._stream: Iterator[tuple[str, Tensor]] = iter(())
        self._next = 0

    def recorded(self) -> tuple[list[Operation], Any]:
        """Every operation, and what the module returns. Raises ParityError if it does not run."""
        found: list[Operation] = []
        running = [""]  # modules
        last: Tensor | None = None
        giver = ""  # the module that gives the last operation's tensor

        def give(operation: tuple[str, Tensor]) -> None:
            nonlocal last, giver
            kind, last = operation
            giver = ""
            shape, sample = sampled(_array(last), self.keep)
            place = f"{kind}, operation {len(found) + 1}"
            found.append(Operation(kind, f"{running[-1]} ({place})" if running[-1] else place, shape, sample))

        def leave(own_name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                nonlocal giver
                running.pop()
                # A container and its last child give the same tensor: the container says better where
                if last is not None and output is last and (not giver or own_name.count(".") < giver.count(".")):
                    giver = own_name
                    found[-1] = found[-1]._replace(place=giver)

            return hook

        handles = []
        for own_name, child in self.model.named_modules():
            if own_name and not isinstance(child, torch.jit.ScriptModule):
                handles += [
                    child.register_forward_pre_hook(lambda _module, _args, at=own_name: running.append(at)),
                    child.register_forward_hook(leave(own_name)),
                ]
        try:
            returned = self._run(give)
        finally:
            for handle in handles:
                handle.remove()
        return found, returned

    def plain(self) -> Any:
        """What the module returns."""
        return self._run(None)

    def values(self, number: int) -> np.ndarray:
        """All values of an operation. Cheapest in the order of computation."""
        if number < self._next:
            self.close()
        if self._next == 0:
            self._stream = streamed(self._run)
        for _, tensor in self._stream:
            self._next += 1
            if self._next == number + 1:
                values = _array(tensor).copy()  # later operations may work in place
                return thin(values, self.keep) if self.keep else values
            del tensor
        raise ParityError(f"{self.name}: computes something else on every run, so that its layers cannot be compared")

    def close(self) -> None:
        """Stop the computation."""
        if self._next:
            self._stream.close()  # type: ignore[attr-defined]  # a generator's
        self._next = 0

    def _run(self, give: Give | None) -> Any:
        given = self.inputs.clone()
        recorder = nullcontext() if give is None else _Recorder(give)
        with their_code(f"{self.name}: does not run on {describe(self.inputs)}"), torch.no_grad(), recorder:
            returned = self.model(given)
        self.changed_input |= not torch.equal(given, self.inputs)
        return returned


@contextmanager
def their_code(failed: str) -> Iterator[None]:
    """Where code of a port runs: whatever it raises becomes a ParityError that begins with ``failed``."""
    try:
        yield
    except (PorterError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ParityError(f"{failed} ({reason})") from error


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every computed tensor of floats to ``give``, before a later operation can overwrite it."""

    def __init__(self, give: Give) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.give = give

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.__name__.partition(".")[0]
        if kind not in COPIES:
            for one in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(one, Tensor) and one.is_floating_point() and 2 <= one.ndim <= 4:
                    self.give((kind, one))
        return result


def describe(tensor: Tensor) -> str:
    """Shape and dtype, in words."""
    return f"{'x'.join(map(str, tensor.shape))} {_dtype(tensor)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensors_in(returned: Any, name: str = "its output", depth: int = DEEPEST) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a module returns, however they are nested, and where they are."""
    if isinstance(returned, Tensor):
        yield name, returned
    elif depth and isinstance(returned, Mapping):
        for key, value in returned.items():
            yield from tensors_in(value, f"{name}[{key!r}]", depth - 1)
    elif depth and isinstance(returned, Sequence) and not isinstance(returned, (str, bytes)):
        fields = getattr(returned, "_fields", None)
        for number, value in enumerate(returned):
            where = f".{fields[number]}" if fields else f"[{number}]"
            yield from tensors_in(value, f"{name}{where}", depth - 1)
    elif depth and hasattr(returned, "__dict__"):
        for key, value in vars(returned).items():
            yield from tensors_in(value, f"{name}.{key}", depth - 1)


def as_array(tensor: Tensor) -> np.ndarray:
    """A copy, in float64 where it has that precision and float32 otherwise."""
    values = tensor.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy().copy()


def _array(tensor: Tensor) -> np.ndarray:
    """NHWC, of the same memory where that can be."""
    return nhwc(tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float())


def recorded(name: str, exact: Run | None, single: Run | None, remarks: Sequence[str]) -> Recording:
    """The run of a module in float64 and in float32, or in one of them.

    Layers are compared in float32 only if both compute the same operations.
    """
    said = list(remarks)
    outputs: dict[str, dict[str, np.ndarray]] = {}
    operations: list[Operation] = []
    sides = {side: run for side, run in (("single", single), ("exact", exact)) if run is not None}
    for side, run in list(sides.items()):
        try:
            found, returned = run.recorded()
        except ParityError as error:
            if side == "single" or single is None:
                raise
            said.append(f"not compared in float64: {error}")
            del sides[side]
            continue
        said += _remarks(run, returned)
        if operations and kinds(found) != kinds(operations):
            del sides["single"]
        operations = found
        for own_name, tensor in tensors_in(returned):
            if tensor.is_floating_point():
                outputs.setdefault(own_name, {})[side] = as_array(tensor)
    if not outputs:
        given = ", ".join(f"{own_name} {describe(tensor)}" for own_name, tensor in tensors_in(returned))
        raise ParityError(f"{name}: returns no tensor of floating point ({given or type(returned).__name__})")

    def values(number: int) -> Output:
        arrays = {side: run.values(number) for side, run in sides.items()}
        return Output(arrays.get("exact"), arrays.get("single"))

    def close() -> None:
        for run in sides.values():
            run.close()

    both = [(own_name, Output(one.get("exact"), one.get("single"))) for own_name, one in outputs.items()]
    return Recording(both, operations, values, tuple(dict.fromkeys(said)), close)


def _remarks(run: Run, returned: Any) -> Iterator[str]:
    """What a caller would not expect of a network."""
    if run.changed_input:
        yield "it changes the images that it is given"
    training = [own_name or "itself" for own_name, child in run.model.named_modules() if child.training]
    if training:
        yield f"in training mode in spite of eval(): {listed(training, 3)}"
    pairs = zip(tensors_in(returned), tensors_in(run.plain()), strict=False)
    if any(one.shape != other.shape or not _close(one, other) for (_, one), (_, other) in pairs):
        yield "not deterministic: the same images give other values in every run"
    wanted = run.inputs.dtype
    for own_name, tensor in tensors_in(returned):
        if tensor.is_floating_point() and tensor.dtype != wanted:
            yield f"{own_name} is {_dtype(tensor)} for images in {_dtype(run.inputs)}"


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
