"""Why a port's weights differ from the checkpoint's: which change gives the port's. Nothing is run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from porter.errors import PorterError
from porter.mapping.apply import carry_out
from porter.mapping.options import PortOptions
from porter.parity.candidates.candidate import StateDict
from porter.parity.candidates.own import ROUNDED, plan_like
from porter.parity.verdict import Cause
from porter.port import Port, plan_opened
from porter.sources import open_checkpoint
from porter.sources.weights import AVERAGE_SET_ASIDE, RAW_SET_ASIDE, Weights
from porter.text import listed

MOST_STEPS = 8  # checkpoints beside this one whose weights are compared, too
SAME = "weights "  # begins what is said of the checkpoint's own weights, rounded or moved
FIRST = 64  # values that are compared before all are
UNCHANGED = PortOptions(layout="slim", keep_background=True, fake_quant=False)  # a port of the checkpoint's own values
BITS = {"float16": 10, "bfloat16": 7}  # of a mantissa


def weight_causes(port: Port, stored: StateDict) -> tuple[list[Cause], bool]:
    """The causes of changed entries, and whether they explain all of them."""
    weights, planned = stored.arrays, _arrays(port, stored)
    others = list(_other_weights(port, stored))
    found: dict[str, list[str]] = defaultdict(list)
    for name in stored.changed:
        theirs, ours = weights[name].astype(np.float64), planned[name].astype(np.float64)
        possible = [one for one in _possible(port, name, ours, theirs, others) if one[1].shape == theirs.shape]
        told = ((words, how(theirs, values)) for how in (_rounded, _moved) for words, values in possible)
        words = next((words + said for words, said in told if said is not None and words + said != SAME), None)
        if words is not None:
            found[words.removesuffix(", ")].append(name)
    causes = [Cause((f"{words}: {listed(names, 3)}",)) for words, names in found.items()]
    return causes, sum(map(len, found.values())) == len(stored.changed)


def _rounded(theirs: np.ndarray, values: np.ndarray) -> str | None:
    """Whether ``theirs`` are ``values``, or these rounded, in words; None if neither."""
    if _same(theirs, values):
        return ""
    dtype = rounded_to(theirs, values)
    return dtype and f"rounded to {dtype}"


def _moved(theirs: np.ndarray, values: np.ndarray) -> str | None:
    """Whether ``theirs`` are ``values`` times a factor, or plus a number, in words; None if neither.

    One value is always both, and tells neither.
    """
    if values.size == 1:
        return None
    factor = float((theirs * values).sum() / ((values * values).sum() or 1.0))
    if _same(theirs, values * factor):
        return f"times {factor:.6g}"
    shift = float((theirs - values).mean())
    return f"plus {shift:.6g}" if _same(theirs, values + shift) else None


def rounded_to(theirs: np.ndarray, values: np.ndarray) -> str | None:
    """The dtype of 16 bits to which ``values`` were rounded to give ``theirs``; None if they were not."""
    for dtype, bits in BITS.items():
        if _near(values.flat[:FIRST], theirs.flat[:FIRST], bits) and _near(values, theirs, bits):
            return dtype
    return None


def _same(theirs: np.ndarray, values: np.ndarray) -> bool:
    return bool((np.abs(theirs - values) <= 2 * ROUNDED * np.abs(values) + 1e-30).all())


def _possible(
    port: Port, name: str, ours: np.ndarray, theirs: np.ndarray, others: list[tuple[str, Mapping[str, np.ndarray]]]
) -> Iterator[tuple[str, np.ndarray]]:
    """What ``theirs`` may be, in words and as values: ``ours``, other weights, another order. Likely ones first."""
    yield SAME, ours
    instead = [(f"{words}, ", arrays[name].astype(np.float64)) for words, arrays in others if name in arrays]
    yield from instead
    if name.startswith("classifier.") and name.partition(".")[2] in ("weight", "bias"):
        whole = _with_background(port, name)
        for places in (1, -1):
            words = "classes shifted by one, " if places == 1 else "classes shifted by one, downwards, "
            if whole is not None and len(whole) == len(ours) + 1 and places == 1:
                yield words, whole[:-1]
            yield words, np.roll(ours, places, 0)
    if ours.ndim == 4:
        for words, values in [("", ours), *instead] if ours.shape[1] == 3 else ():
            yield f"{words}BGR: the first convolution's input channels are reversed, ", values[:, ::-1]
        yield "kernels with height and width exchanged, ", ours.swapaxes(2, 3)
        yield "kernels flipped, up and down, ", ours[:, :, ::-1]
        yield "kernels flipped, left and right, ", ours[..., ::-1]
        yield "kernels turned by 180 degrees, ", ours[:, :, ::-1, ::-1]
    for axis in range(min(2, ours.ndim)):
        words = "outputs" if axis == 0 else "inputs"
        for sign in (1, -1):  # of a factor
            yield f"{words} in another order, ", _reordered(ours, theirs, axis, sign)


def _near(ours: np.ndarray, theirs: np.ndarray, bits: int) -> bool:
    """Whether ``theirs`` is ``ours`` rounded to ``bits`` of a mantissa (or to float16's least number)."""
    mantissa, _ = np.frexp(theirs)
    exact = np.ldexp(mantissa, bits + 1) == np.round(np.ldexp(mantissa, bits + 1))
    least = 2.0**-25 if bits == BITS["float16"] else 0.0
    near = np.abs(theirs - ours) <= 2.0 ** -(bits + 1) * (1 + 2.0**-10) * np.abs(ours) + least
    return bool((exact & near).all())


def _reordered(ours: np.ndarray, theirs: np.ndarray, axis: int, sign: int) -> np.ndarray:
    """``ours`` with its slices along ``axis`` in the order of ``theirs``, found by the first values times ``sign``."""
    keys = [np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)[:, :4].T for values in (sign * ours, theirs)]
    mine, other = (np.lexsort(key[::-1]) for key in keys)
    order = np.empty_like(mine)
    order[other] = mine
    return np.take(ours, order, axis)


def _with_background(port: Port, name: str) -> np.ndarray | None:
    """The classifier's entry with the background class; None where there is none."""
    if not port.plan.background_dropped:
        return None
    plan = plan_opened(port.checkpoint, port.mapping, UNCHANGED).plan
    steps = tuple(step for step in plan.steps if step.target == name)
    one = replace(plan, steps=steps, targets=(name,), norms={}, constants={}, ranges={})
    return carry_out(one, port.checkpoint, "float64").arrays.get(name) if steps else None


def _other_weights(port: Port, stored: StateDict) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """The raw weights where the port has averages, or the other way round; and those of steps beside this one."""
    checkpoint = port.checkpoint
    if checkpoint.remote or checkpoint.format != "bundle":
        return
    if other := other_average(port):
        words, planned = other
        yield words, _arrays(planned, stored)
    own = checkpoint.path.name
    beside = sorted(path.with_suffix("") for path in checkpoint.path.parent.glob("*.index"))
    for path in [path for path in beside if path.name != own][:MOST_STEPS]:
        try:
            yield f"the weights of another checkpoint, {path.name}", _arrays(_planned(port, path), stored)
        except PorterError:  # another network's, or damaged: not where these weights come from
            continue


def other_average(port: Port) -> tuple[str, Port] | None:
    """The raw weights where the port has averages, or the other way round: in words, and as a port."""
    reasons, path = port.checkpoint.set_aside.values(), port.checkpoint.path
    if RAW_SET_ASIDE in reasons:
        return "raw weights instead of their averages", _planned(port, path, "raw")
    averaged = AVERAGE_SET_ASIDE in reasons
    return ("averages instead of raw weights", _planned(port, path, "ema")) if averaged else None


def _planned(port: Port, path: Path, weights: Weights = "auto") -> Port:
    return plan_opened(open_checkpoint(path, weights), port.mapping, UNCHANGED)


def _arrays(port: Port, stored: StateDict) -> Mapping[str, np.ndarray]:
    return carry_out(plan_like(stored.arrays, port, stored.layout), port.checkpoint, "float64").arrays
