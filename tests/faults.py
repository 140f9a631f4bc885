"""Mistakes to inject into a port, one at a time: what a verdict must not miss."""

import copy

import numpy as np
import torch
from torch import nn

from porter.models.mobilenet_v3 import Gate, SameConv2d
from porter.network.nodes import is_weight
from porter.parity.candidates.own import in_both_precisions


def faults(state, random):
    """(kind, place, change) of every fault: ``change(model)`` makes it. ``state`` is the state dict to damage."""
    for name, value in state.items():
        if value.is_floating_point() and is_weight(name):
            position = _lively(value, random)
            if position is None:
                continue
            yield "one weight x 1.001", name, lambda model, n=name, p=position: _scale(model, n, p)
    convolutions = [(name, value) for name, value in state.items() if value.ndim == 4 and value.shape[-1] > 1]
    for name, value in convolutions:
        channel = int(random.integers(len(value)))
        yield "one channel's kernel flipped", name, lambda model, n=name, c=channel: _flip(model, n, c)
        first, second = (int(c) for c in random.choice(len(value), 2, replace=False))
        yield "two channels swapped", name, lambda model, n=name, a=first, b=second: _swap(model, n, a, b)
        layer = name.removesuffix(".weight")
        yield "padding shifted in one layer", layer, lambda model, at=layer: _shift_padding(model.get_submodule(at))
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    for name in norms:
        yield (
            "epsilon 1.001e-3 in one layer",
            name,
            lambda model, n=name: setattr(model.get_submodule(n), "eps", 1.001e-3),
        )
    yield (
        "epsilon 1.001e-3",
        "everywhere",
        lambda model: [setattr(model.get_submodule(n), "eps", 1.001e-3) for n in norms],
    )
    if any(".se." in name for name in state):
        yield "gate 1/6", "everywhere", _gates
    if "classifier.weight" in state:
        yield "classes shifted by one", "classifier", _shift_classes
    yield "weights rounded to float16", "everywhere", _round_weights
    yield "one missing activation", "act1", lambda model: setattr(model, "act1", nn.Identity())
    for name in {name.rpartition(".")[0] for name in norms if name.startswith("blocks.")}:
        for act in ("act1", "act2", "act"):
            yield "one missing activation", f"{name}.{act}", lambda model, n=name, a=act: _drop(model, n, a)


def with_fault(candidate_models, change):
    """A candidate with ``change`` made to both its models; None where there is nothing to change."""
    models = [copy.deepcopy(model) for model in candidate_models]
    with torch.no_grad():
        if any(change(model) is False for model in models):
            return None
    return in_both_precisions("faulty", *models)


def one_from(state, name):
    """The fault of one variable out of another set of weights (raw instead of averaged)."""
    return lambda model: model.state_dict()[name].copy_(state[name])


def _lively(value, random):
    """A position of a weight that is not tiny: a thousandth of nothing is nothing. None where all are 0."""
    flat = value.abs().flatten()
    large = np.flatnonzero(((flat >= flat.median()) & (flat > 0)).numpy())
    return int(random.choice(large)) if len(large) else None


def _scale(model, name, position):
    model.state_dict()[name].view(-1)[position] *= 1.001


def _flip(model, name, channel):
    weight = model.state_dict()[name]
    weight[channel] = weight[channel].flip(-1, -2)


def _swap(model, name, a, b):
    weight = model.state_dict()[name]
    weight[[a, b]] = weight[[b, a]]


def _shift_padding(layer):
    assert isinstance(layer, SameConv2d)
    right = layer._padding
    layer.pads_itself = False
    layer._padding = lambda x, axis: (
        right(x, axis)[::-1]
        if right(x, axis)[0] != right(x, axis)[1]
        else (
            right(x, axis)[0] + 1,
            right(x, axis)[1] - 1,
        )
    )
    layer.forward = lambda x: torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (*layer._padding(x, 1), *layer._padding(x, 0))),
        layer.weight,
        layer.bias,
        layer.stride,
        0,
        1,
        layer.groups,
    )


def _gates(model):
    for module in model.modules():
        if isinstance(module, Gate):
            module.slope = 1 / 6


def _shift_classes(model):
    for tensor in (model.classifier.weight, model.classifier.bias):
        tensor.copy_(tensor.roll(1, 0))


def _round_weights(model):
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().to(tensor.dtype))


def _drop(model, name, act):
    block = model.get_submodule(name)
    if not isinstance(getattr(block, act, None), (nn.ReLU, nn.Hardswish)):
        return False
    setattr(block, act, nn.Identity())
    return None
