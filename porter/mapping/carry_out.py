"""Carrying out a plan: reading, reordering, folding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from porter.errors import CheckpointError
from porter.loaders import Checkpoint
from porter.mapping.gate import fold
from porter.mapping.layouts import to_target
from porter.mapping.plan import Plan

if TYPE_CHECKING:
    import numpy as np


class Ported(NamedTuple):
    """State-dict values by entry, in the state dict's order; ``fold_nudges`` undo the gate fold (see gate.fold)."""

    tensors: dict[str, np.ndarray]
    fold_nudges: dict[str, list[int]]


def carry_out(plan: Plan, checkpoint: Checkpoint, dtype: Literal["float32", "float64"] = "float32") -> Ported:
    """Read every planned variable and bring it into PyTorch's layout.

    Returns contiguous arrays of ``dtype`` that own their memory (int64 counters apart). Raises
    CheckpointError on damaged data and on values that are not finite.
    """
    import numpy as np

    tensors: dict[str, np.ndarray] = {}
    nudges: dict[str, list[int]] = {}
    for step in plan.steps:
        variable = checkpoint[step.source]
        values = to_target(step.layout, variable.read())
        if step.drop_class is not None:
            # A view where it can be: the classifier is the largest tensor
            values = values[1:] if step.drop_class == 0 else np.delete(values, step.drop_class, axis=0)
        values = np.array(values, dtype, order="C")
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise CheckpointError(
                f"{variable.file}: tensor {variable.stored_as}: {count} of {values.size} values are NaN or infinite; "
                "a diverged training run? choose another step"
            )
        if step.scale != 1.0:
            values, lost = fold(values, step.scale)
            if lost:
                nudges[step.target] = lost
        tensors[step.target] = values
    in_order = {name: tensors[name] if name in tensors else np.zeros((), np.int64) for name in plan.targets}
    return Ported(in_order, nudges)
