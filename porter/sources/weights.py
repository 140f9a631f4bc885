"""Which weights of a checkpoint to read: raw ones or their moving averages (EMA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from porter.errors import CheckpointError, Option
from porter.sources.variable import Variable

Weights = Literal["auto", "ema", "raw"]

# tf.train.ExponentialMovingAverage's default name
AVERAGE_SUFFIX = "/ExponentialMovingAverage"
RAW_SET_ASIDE = "raw value; its moving average is used"
AVERAGE_SET_ASIDE = "moving average; the raw value is used"


def select_weights(
    variables: Mapping[str, Variable], weights: Weights, path: str, averaged: bool
) -> tuple[dict[str, Variable], dict[str, str]]:
    """Choose one value per plain variable name.

    ``averaged``: True if the plain names hold averages (a released ``ema/`` folder). Returns the chosen variables by
    plain name, and the names set aside with the reason. A variable without an average keeps its raw value, as
    ``ExponentialMovingAverage.variables_to_restore`` does. Raises CheckpointError if there are no such ``weights``.
    """
    averages = {
        name.removesuffix(AVERAGE_SUFFIX): var for name, var in variables.items() if name.endswith(AVERAGE_SUFFIX)
    }
    plain = {name: var for name, var in variables.items() if not name.endswith(AVERAGE_SUFFIX)}
    if weights == "ema" and not averages and not averaged:
        raise CheckpointError(f"{path}: no variable ends in {AVERAGE_SUFFIX}; use", option=Option("weights", "auto"))
    if weights == "raw" and averaged:
        what = "a released ema/ folder holds only moving averages"
        raise CheckpointError(f"{path}: {what}; use", option=Option("weights", "auto"))
    if weights == "raw":
        return plain, {var.stored_as: AVERAGE_SET_ASIDE for var in averages.values()}
    chosen = plain | {name: msgspec.structs.replace(var, name=name) for name, var in averages.items()}
    return chosen, dict.fromkeys((name for name in averages if name in plain), RAW_SET_ASIDE)
