"""Carrying out a plan: reading, reordering, folding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from porter.errors import CheckpointError
from porter.mapping.axes import to_target
from porter.mapping.gate import fold
from porter.mapping.plan import Plan, Step
from porter.mapping.ranges import FIELDS, Range
from porter.network.network import GATE_ENTRY
from porter.sources import Checkpoint

if TYPE_CHECKING:
    import numpy as np

FLOAT32_MAX = 3.4028234663852886e38


class Ported(NamedTuple):
    """State-dict values by entry, in the state dict's order; ``fold_nudges`` undo the gate fold (see gate.fold).

    ``ranges``: the ranges of tensors that the source quantised to 8 bits, by module or entry. ``background``: weights
    and bias of the class that was dropped, little-endian float32.
    """

    arrays: dict[str, np.ndarray]
    fold_nudges: dict[str, list[int]]
    ranges: dict[str, Range]
    background: bytes


def carry_out(plan: Plan, checkpoint: Checkpoint, dtype: Literal["float32", "float64"] = "float32") -> Ported:
    """Read every planned variable, convert it to PyTorch's layout, and fold what the plan folds.

    Returns contiguous arrays of ``dtype`` that own their memory (counters are int64). Raises CheckpointError on damaged
    data and on values that are not finite.
    """
    import numpy as np

    checkpoint.prefetch(step.source for step in plan.steps)
    dropped: list[bytes] = []
    tensors = {step.target: _read(step, checkpoint, dtype, dropped) for step in plan.steps}
    for name, (value, length) in plan.constants.items():
        tensors[name] = np.full(length, value, dtype)
    for module, (norm, epsilon) in plan.norms.items():
        weight, bias = fold_batch_norm(tensors, module, norm, epsilon)
        tensors[f"{module}.weight"], tensors[f"{module}.bias"] = weight, bias
    nudges: dict[str, list[int]] = {}
    for step in plan.steps:
        if step.scale != 1.0:
            tensors[step.target], lost = fold(tensors[step.target], step.scale)
            if lost:
                nudges[step.target] = lost
    tensors[GATE_ENTRY] = np.array(plan.gate, np.float32)
    in_order = {name: tensors[name] if name in tensors else np.zeros((), np.int64) for name in plan.targets}
    for name in plan.folded:
        values = in_order[name]
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{checkpoint.given}: entry {name}: folding gives values that are NaN or infinite; weights beyond "
                "float32, or a variance below 0?"
            )
    classes = {step.target.rpartition(".")[0]: step.drop_class for step in plan.steps if step.drop_class is not None}
    ranges = {at: _range(checkpoint, name, classes.get(at)) for at, name in plan.ranges.items()}
    return Ported(in_order, nudges, ranges, b"".join(dropped))


def _range(checkpoint: Checkpoint, name: str, drop_class: int | None) -> Range:
    """The range ``name``, without the channel of ``drop_class`` if it has one value per channel."""
    found = {field: checkpoint.get(f"{name}/{field}") for field in FIELDS}
    numbers = {field: variable.read().tolist() for field, variable in found.items() if variable is not None}
    for values in numbers.values():
        if drop_class is not None and isinstance(values, list):
            del values[drop_class]
    low, high = numbers["min"], numbers["max"]
    if not -FLOAT32_MAX <= low <= 0 <= high <= FLOAT32_MAX or low == high:
        raise CheckpointError(
            f"{checkpoint.path}: range {name}: {low} to {high} holds no zero, or nothing else; was it trained?"
        )
    return msgspec.convert(numbers, Range)


def _read(step: Step, checkpoint: Checkpoint, dtype: str, dropped: list[bytes]) -> np.ndarray:
    """The values of ``step``; a class that it drops goes to ``dropped``."""
    import numpy as np

    variable = checkpoint[step.source]
    values = to_target(step.axes, variable.read())
    if step.drop_class is not None:
        dropped.append(values[step.drop_class].astype("<f4").tobytes())
        # A view if possible: the classifier is the largest tensor
        values = values[1:] if step.drop_class == 0 else np.delete(values, step.drop_class, axis=0)
    values = np.array(values, dtype, order="C")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise CheckpointError(
            f"{variable.file}: tensor {variable.stored_as}: {count} of {values.size} values are NaN or infinite; "
            "a diverged training run? choose another step"
        )
    return values + values.dtype.type(step.shift) if step.shift else values


def fold_batch_norm(
    tensors: Mapping[str, np.ndarray], module: str, norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (outputs first) and bias of ``module`` with its batch norm ``norm`` folded in.

    Computed in float64, rounded once to the weight's dtype.
    """
    import numpy as np

    weight = tensors[f"{module}.weight"]
    gamma, beta, mean, variance = (
        tensors[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(variance + epsilon)
    scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.astype(weight.dtype), (beta - mean * factor).astype(weight.dtype)
