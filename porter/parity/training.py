"""``verify --train``: one batch through a port and TensorFlow in training mode.

Compared are statistics of batch norms after the step, outputs, loss and every gradient. Dropout is off on both sides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from porter.errors import ParityError
from porter.mapping.rules import expected_variables
from porter.models.build import Whole, capture, nhwc
from porter.network.network import Network
from porter.network.node import Size
from porter.parity.candidates.candidate import Output, Question
from porter.parity.check import Check
from porter.parity.compare import NO_NOISE, SAME_FUNCTION, Row, compare
from porter.parity.references.choose import of_keras
from porter.parity.references.reference import Noise, Values, larger
from porter.parity.references.training_step import GRADIENT, LOSS, STATISTICS, judged
from porter.parity.samples import Sample, noise
from porter.parity.verdict import Cause
from porter.port import Port

# Eight images of 64 pixels have 32 positions on a last map of stride 32: a variance of some precision
BATCH, SIZE = 8, (64, 64)
# Where a value is next to an activation's kink, float32 may land on the other side, and gradients lose or gain a term.
# That is chance, and happens to other values on another batch. Lost precision shows on every batch
BATCHES = 3
SMALLEST_GRADIENT = 2.0**-10  # of the largest of all; what is below is rounding of sums that cancel
DROPOUT = ("p", "dropout", "drop_rate", "drop_prob")  # of torch, our network, timm's networks, its paths
# What may remain of a difference that a momentum explains: rounding, times the ratio of both momenta
EXPLAINED = 1e-9


class _Step(NamedTuple):
    """What a module has after a step, by the names of a reference's values, and its statistics before."""

    values: dict[str, np.ndarray]
    before: dict[str, np.ndarray]


def check_step(check: Check, sizes: Sequence[Size] | None, seed: int) -> None:
    """Run the step on both sides and give the verdict a row for each value, and a cause for a wrong momentum.

    Raises ParityError for a candidate that is no module with the port's entries.
    """
    port, candidate, reference, verdict = check.port, check.candidate, check.reference, check.verdict
    assert port is not None
    if candidate.modules is None:
        raise ParityError(f"{verdict.artifact}: has no gradients; only a state dict or an nn.Module can be trained")
    shapes = {name: tuple(value.shape) for name, value in candidate.modules[0].state_dict().items()}
    for step in port.plan.steps:
        if shapes.get(step.target) != step.target_shape:
            raise ParityError(
                f"{verdict.artifact}: entry {step.target} is {shapes.get(step.target, 'missing')}, the port has "
                f"{step.target_shape}; training is compared by the port's names and classes"
            )
    size = step_size(port, sizes)
    if reference.size not in (None, size):
        raise ParityError(f"{reference.name}: runs at {reference.size[0]}x{reference.size[1]} only; leave out the size")
    for batch in range(BATCHES):
        rows = _rows(check, port, noise(size, seed + batch, BATCH))
        best = {row.endpoint: row for row in verdict.rows}
        verdict.rows = [min(row, best.get(row.endpoint, row), key=lambda one: one.excess) for row in rows]
        if verdict.passed or verdict.same_function is False:
            break


def _rows(check: Check, port: Port, sample: Sample) -> list[Row]:
    """The step on one batch, in the order of computation; names the cause of wrong statistics in the verdict."""
    candidate, reference = check.candidate, check.reference
    assert candidate.modules is not None
    given = reference.prepare(sample.images)
    single, exact = candidate.modules
    runs: dict[Question, nn.Module] = {"function": exact, "rounding": single}
    steps = {asked: _step(module, port, given) for asked, module in runs.items() if asked in check.questions}
    gate = port.plan.gate if candidate.model is None else candidate.model.network.gate
    theirs = {name: _as_ported(port, gate, name, one) for name, one in reference.run(sample.images, [])}
    scales = _scales(theirs)
    inherited, rows = NO_NOISE, []
    for name, values in theirs.items():
        doubles, singles = (steps[asked].values[name] if asked in steps else None for asked in runs)
        output = Output(_shaped(doubles, values), _shaped(singles, values))
        row = compare(name, sample.label, values, output, SAME_FUNCTION, inherited, scales[name])
        inherited = larger(inherited, row.reference or NO_NOISE)
        rows.append(row.with_rounded_weights() if candidate.rounded_weights else row)
    if "function" in steps:
        check.verdict.causes = _momentum(port.network, steps["function"], theirs, scales)
    return rows


class _ExactHardSigmoid(TorchFunctionMode):
    """Hard sigmoids of float64 as relu6(x + 3) / 6: PyTorch's own multiplies gradients by 1/6 in float32, 2e-8 off.

    See hardsigmoid_backward_kernel of aten/src/ATen/native/cpu/Activation.cpp.
    """

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.hardsigmoid and args[0].dtype == torch.float64:
            return F.relu6(args[0] + 3) / 6
        return function(*args, **(kwargs or {}))


def step_size(port: Port, sizes: Sequence[Size] | None) -> Size:
    """The size of the images: a Keras file's own model takes those that it was made for."""
    if sizes:
        return sizes[0]
    return port.mapping.input.sides if of_keras(port.checkpoint) else SIZE


def refuse_untrainable(port: Port) -> None:
    """Raise ParityError for a source, or a port of it, without batch norms to train."""
    if port.plan.ranges or port.plan.dequantized:
        raise ParityError(f"{port.checkpoint.given}: was trained for 8 bits; training that is not compared")
    if port.plan.bn_folded:
        raise ParityError(f"{port.checkpoint.given}: has no batch norms, so training it is not what TensorFlow did")


def _step(module: nn.Module, port: Port, images: np.ndarray) -> _Step:
    """One step of a copy of ``module`` on ``images`` (N, H, W, C)."""
    module = copy.deepcopy(module).train()
    for child in module.modules():
        for name in DROPOUT:
            if isinstance(getattr(child, name, None), float):
                setattr(child, name, 0.0)
    weight = next(module.parameters())
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(weight.device, weight.dtype)
    before = {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}
    outputs: dict[str, Tensor] = {}
    with _ExactHardSigmoid():
        if isinstance(module, Whole):
            with capture(module, outputs.__setitem__):
                module(inputs)
        else:
            outputs["Logits"] = module(inputs)
    classes = port.plan.num_classes
    given = {name: outputs[name] for name in judged(port.network, classes)}
    loss = _loss(port.network, classes, given)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: nhwc(values) for name, values in given.items()} | {LOSS: loss.detach().cpu().numpy().reshape(1)}
    for name, value in module.state_dict(keep_vars=True).items():
        if name.endswith(STATISTICS):
            found[name] = value.detach().cpu().numpy()
        elif value.requires_grad:
            found[GRADIENT + name] = np.zeros(value.shape) if value.grad is None else value.grad.cpu().numpy()
    return _Step(found, before)


def _loss(network: Network, classes: int, given: dict[str, Tensor]) -> Tensor:
    """The reference's loss; see ``judged``."""
    total = next(iter(given.values())).new_zeros(())
    for name, count in judged(network, classes).items():
        values = given[name]
        if not count:
            total = total + values.square().mean() / 2
            continue
        rows = (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).reshape(-1, count)
        labels = torch.arange(len(rows), device=rows.device) % count
        if network.predictions == "sigmoid":
            wanted = F.one_hot(labels, count).to(rows.dtype)
            total = total + F.binary_cross_entropy_with_logits(rows, wanted)
        else:
            total = total + F.cross_entropy(rows, labels)
    return total


def _shaped(values: np.ndarray | None, like: Values) -> np.ndarray | None:
    """``values`` in the reference's shape: Keras pools to rows."""
    return values if values is None or values.size != like.values.size else values.reshape(like.values.shape)


def _as_ported(port: Port, gate: float, name: str, found: Values) -> Values:
    """A gradient for the port's entry: without the background class, and over the ratio that a gate folded in."""
    entry = name.removeprefix(GRADIENT)
    if entry == name:
        return found
    steps = {step.target: step for step in port.plan.steps}
    folding = {w.target for w in expected_variables(port.mapping, port.network, port.classes) if w.folds_gate}
    values, error = found
    if steps[entry].drop_class is not None:
        values = np.delete(values, steps[entry].drop_class or 0, axis=0)
    if entry in folding:
        ratio = port.network.gate / gate
        values, error = values / ratio, error and Noise(error.rms / ratio, error.largest / ratio)
    return Values(values, error)


def _scales(theirs: dict[str, Values]) -> dict[str, float]:
    """The largest of each value; of gradients, the largest of all of a layer's; of means, the deviation if it is more.

    A shift before a batch norm has a gradient of 0: what is left is the rounding of sums that cancel, and the layer's
    other gradients are of the size of their terms. Where all of a layer's are 0, the network's largest has that part.
    """
    largest = {name: float(np.abs(one.values).max(initial=0.0)) for name, one in theirs.items()}
    layers: dict[str, float] = {}
    for name, value in largest.items():
        if name.startswith(GRADIENT):
            layer = name.rpartition(".")[0]
            layers[layer] = max(layers.get(layer, 0.0), value)
    for name in largest:
        if name.endswith("running_var"):
            mean = f"{name.rpartition('.')[0]}.running_mean"
            largest[mean] = max(largest[mean], math.sqrt(largest[name]))
    least = SMALLEST_GRADIENT * max(layers.values())
    return {
        name: max(layers[name.rpartition(".")[0]], least) if name.startswith(GRADIENT) else value
        for name, value in largest.items()
    }


def _momentum(network: Network, step: _Step, theirs: dict[str, Values], scale: dict[str, float]) -> list[Cause]:
    """The momentum that the port's batch norms have, if it is another and explains their statistics."""
    moved = {name: theirs[name].values - step.before[name] for name in theirs if name.endswith(STATISTICS)}
    if not moved:
        return []
    own = {name: step.values[name] - step.before[name] for name in moved}
    squares = sum(float(np.square(values).sum()) for values in moved.values())
    ratio = sum(float((own[name] * moved[name]).sum()) for name in moved) / (squares or 1.0)
    before = max(float(np.abs(own[name] - moved[name]).max()) / (scale[name] or 1.0) for name in moved)
    after = max(float(np.abs(own[name] - ratio * moved[name]).max()) / (scale[name] or 1.0) for name in moved)
    if not before > SAME_FUNCTION or not after <= EXPLAINED * max(1.0, ratio) * max(1.0, before):
        return []
    momentum = ratio * (1 - network.decay)
    copied = ", TensorFlow's decay" if abs(momentum - network.decay) < EXPLAINED else ""
    name = f"batch norm momentum {momentum:.4g}{copied} instead of {1 - network.decay:.4g}"
    return [Cause((name,), before, after, "the statistics'")]
