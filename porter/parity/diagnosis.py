"""Why a port differs: known porting mistakes, up to three at once, made in our own network.

A mistake is named if our network with it gives the port's output, down to rounding.
"""

from __future__ import annotations

import copy
import time
import types
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.models.mobilenet_v3 import Gate, MobileNetV3, SameConv2d, SqueezeExcite
from porter.network.network import TIMM_GATE
from porter.parity.candidates.own import ported_model
from porter.parity.verdict import Cause
from porter.parity.weight_causes import UNCHANGED, other_average
from porter.port import Port, plan_opened

# Limits over the logits' scale, for a target in float64 and in float32: the difference that is only rounding; the
# difference that a mistake may leave (folded weights may be rounded to float32, and float32 computations err by up to
# 2e-5); and the share of the difference that it may leave, as a mistake of little effect does not explain a small one.
EXPLAINED = {"exact": (1e-12, 1e-6, 1e-2), "single": (2e-5, 2e-5, 1e-1)}

MOST_AT_ONCE = 3  # timm's and torchvision's own classes make three of these mistakes, and no more
EXTENDED = 12
MORE = {1: " and all combinations", 2: " and those of 3", 3: ""}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TF_CLASSES = 1001  # slim's, background first


Change = Callable[[MobileNetV3], None]


class Mistake(NamedTuple):
    """A way in which a port may differ from the original: in the network, its images or its logits."""

    name: str
    change: Change | None = None
    images: Callable[[Tensor], Tensor] = lambda images: images
    class_shift: int = 0


class Target(NamedTuple):
    """Logits (N, classes) to explain, of ``images`` (N, H, W, C); ``exact`` where they were computed in float64."""

    images: np.ndarray
    logits: np.ndarray
    exact: bool


def explained(port: Port, target: Target, seconds: float) -> tuple[list[Cause], str]:
    """At most three mistakes that make our network give the logits of ``target``; none if none do.

    Also none if our network gives them without any. Likely ones are tried first, for ``seconds``; with what was not
    tried, in words.
    """
    end = time.monotonic() + seconds
    whole = plan_opened(port.checkpoint, port.mapping, UNCHANGED)
    inputs = torch.from_numpy(target.images).permute(0, 3, 1, 2).contiguous()
    models: dict[str, Any] = {dtype: ported_model(whole, dtype) for dtype in ("float32", "float64")}

    @cache
    def with_one(change: Change, dtype: str) -> Any:
        """Our network with one mistake; kept, since pairs begin with one."""
        model = copy.deepcopy(models[dtype])
        change(model)
        return model

    def changed(mistakes: tuple[Mistake, ...], dtype: str) -> Any:
        """Our network with these mistakes."""
        changes = [mistake.change for mistake in mistakes if mistake.change is not None]
        if not changes:
            return models[dtype]
        model = with_one(changes[0], dtype)
        for change in changes[1:]:
            model = copy.deepcopy(model)
            change(model)
        return model

    def distance(mistakes: tuple[Mistake, ...], dtype: str) -> float:
        given = inputs.to(getattr(torch, dtype))
        for mistake in mistakes:
            given = mistake.images(given)
        with torch.no_grad():
            shift = sum(mistake.class_shift for mistake in mistakes)
            logits = _classes(changed(mistakes, dtype)(given).numpy(), target.logits.shape[1], shift)
        if logits is None:
            return np.inf
        return float(np.abs(logits - target.logits).max() / (np.abs(target.logits).max() or 1.0))

    rounding, limit, share = EXPLAINED["exact" if target.exact else "single"]
    before = distance((), "float64")
    if not before > rounding:
        return [], ""
    enough = min(limit, share * before)
    known = list(_mistakes(port, target.images.shape[1:3]))
    tried: list[tuple[Mistake, ...]] = [(mistake,) for mistake in known]
    for at_once in range(1, MOST_AT_ONCE + 1):
        # Screened in float32, which is faster; its rounding must not hide an explanation
        ranked = []
        for number, mistakes in enumerate(tried):
            if time.monotonic() > end:
                break
            ranked.append((distance(mistakes, "float32"), number))
        ranked.sort()
        found = [
            Cause(tuple(mistake.name for mistake in tried[number]), before, after)
            for rough, number in ranked[:5]
            if rough <= max(enough, EXPLAINED["single"][0]) and (after := distance(tried[number], "float64")) <= enough
        ]
        if found:
            return [min(found, key=lambda cause: cause.after or 0.0)], ""
        if len(ranked) < len(tried):
            of = "single mistakes" if at_once == 1 else f"combinations of {at_once}"
            return [], f"{len(tried) - len(ranked)} of {len(tried)} {of}{MORE[at_once]}"
        tried = _one_more(known, [tried[number] for _, number in ranked])
    return [], ""


def _one_more(known: list[Mistake], ranked: list[tuple[Mistake, ...]]) -> list[tuple[Mistake, ...]]:
    """All pairs; of longer combinations, only those that extend the pairs with the smallest difference."""
    begun = ranked if len(ranked[0]) == 1 else ranked[:EXTENDED]
    more = {frozenset((*mistakes, other)): (*mistakes, other) for mistakes in begun for other in known}
    ordered = [mistakes for names, mistakes in more.items() if len(names) == len(mistakes)]
    return [tuple(sorted(mistakes, key=known.index)) for mistakes in ordered]


def _classes(logits: np.ndarray, wanted: int, shift: int) -> np.ndarray | None:
    """The checkpoint's ``logits``, background first, in the numbering of a port with ``wanted`` classes."""
    if wanted == logits.shape[1]:
        return np.roll(logits, shift, axis=1)
    if wanted == logits.shape[1] - 1 and logits.shape[1] == TF_CLASSES:
        return logits[:, 1:] if shift == 0 else logits[:, :-1] if shift == 1 else np.roll(logits[:, 1:], shift, axis=1)
    return None


def _mistakes(port: Port, size: tuple[int, ...]) -> Iterator[Mistake]:
    yield Mistake("symmetric padding", _each(SameConv2d, _pad_symmetrically))
    yield Mistake("squeeze-excite gate of 1/6", _each(Gate, lambda gate: setattr(gate, "slope", TIMM_GATE)))
    yield Mistake("batch norm epsilon 1e-5", _each(nn.BatchNorm2d, lambda norm: setattr(norm, "eps", 1e-5)))
    yield from _other_weights(port)
    yield Mistake("classes shifted by one", class_shift=1)
    yield Mistake("classes shifted by one, downwards", class_shift=-1)
    yield from _input_mistakes(port, size)
    yield Mistake("pooling behind the head convolution", _pool_behind_head)
    yield Mistake("h-swish inside squeeze-excite", _each(SqueezeExcite, lambda se: setattr(se, "act1", nn.Hardswish())))
    yield Mistake("swish inside squeeze-excite", _each(SqueezeExcite, lambda se: setattr(se, "act1", nn.SiLU())))
    yield Mistake("h-swish as swish", lambda model: _replace(model, nn.Hardswish, nn.SiLU))
    yield Mistake("h-swish as ReLU", lambda model: _replace(model, nn.Hardswish, nn.ReLU))
    yield Mistake("kernels with height and width exchanged", _each(nn.Conv2d, _exchange_sides))
    for name, change in (
        ("an activation behind squeeze-excite", _activation_behind_gate),
        ("squeeze-excite before the activation", _gate_before_activation),
        ("sigmoid as squeeze-excite gate", _each(SqueezeExcite, lambda se: setattr(se, "gate", nn.Sigmoid()))),
        ("weights rounded to float16", lambda model: _round(model, torch.float16)),
        ("weights rounded to bfloat16", lambda model: _round(model, torch.bfloat16)),
    ):
        yield Mistake(name, change)
        if port.network.stated_gate is not None:  # on timm's weights this gives another function
            yield Mistake(name, _folded(change))


def _input_mistakes(port: Port, size: tuple[int, ...]) -> Iterator[Mistake]:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    yield Mistake("input in [0, 1]", images=lambda x: (x + 1) / 2)
    yield Mistake("input in 0..255", images=lambda x: (x + 1) * 127.5)
    yield Mistake("ImageNet mean and std", images=lambda x: ((x + 1) / 2 - mean) / std)
    yield Mistake("input taken for [0, 1] and rescaled", images=lambda x: x * 2 - 1)
    yield Mistake("input taken for 0..255 and rescaled", images=lambda x: x / 127.5 - 1)
    yield Mistake("input taken for [0, 1], ImageNet mean and std", images=lambda x: (x - mean) / std)
    yield Mistake("BGR", images=lambda x: x.flip(1))
    trained = port.mapping.input.sides
    resize = partial(F.interpolate, size=trained, mode="bilinear")
    if tuple(size) != trained and max(size) <= min(trained):  # enlarged: antialiasing changes nothing
        yield Mistake("bilinear resize", images=resize)
    elif tuple(size) != trained:
        yield Mistake("bilinear resize without antialiasing", images=resize)
        yield Mistake("bilinear resize with antialiasing", images=partial(resize, antialias=True))


def _other_weights(port: Port) -> Iterator[Mistake]:
    """The raw weights where the port has averages, or the other way round."""
    if not port.checkpoint.remote and (other := other_average(port)):
        words, opened = other
        state = ported_model(opened, "float64").state_dict()
        yield Mistake(words, lambda model: model.load_state_dict(state))


def _pad_symmetrically(conv: Any) -> None:
    conv.pads_itself = True
    conv.padding = tuple((kernel - 1) // 2 for kernel in conv.kernel_size)


def _folded(change: Change) -> Change:
    """``change``, made after folding slim's gate into the weights."""

    def fold_and_change(model: MobileNetV3) -> None:
        for block, _ in _gated_blocks(model):
            gate = block.se.gate
            if isinstance(gate, Gate):  # another mistake may have replaced it
                project = block.conv_pwl if hasattr(block, "conv_pwl") else block.conv_pw
                project.weight.data *= gate.slope / TIMM_GATE
                gate.slope = TIMM_GATE
        change(model)

    return fold_and_change


def _each(kind: type[nn.Module], change: Callable[[nn.Module], None]) -> Change:
    """``change`` of every module of ``kind``."""

    def change_all(model: MobileNetV3) -> None:
        for module in list(model.modules()):
            if isinstance(module, kind):
                change(module)

    return change_all


def _replace(model: nn.Module, kind: type[nn.Module], by: Callable[[], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, by())


def _pool_behind_head(model: MobileNetV3) -> None:
    if not model.network.embedding:
        return
    head, act = model.conv_head, model.act2

    def forward_head(self: MobileNetV3, x: Tensor) -> Tensor:
        assert isinstance(head, nn.Conv2d)
        x = act(F.conv2d(x, head.weight, head.bias))
        return self.classifier(self.global_pool(x).flatten(1))

    model.forward_head = types.MethodType(forward_head, model)  # type: ignore[method-assign]


def _gated_blocks(model: MobileNetV3) -> Iterator[tuple[Any, str]]:
    """Blocks with squeeze-excite, and the name of the activation before it."""
    for block in model.modules():
        if isinstance(getattr(block, "se", None), SqueezeExcite):
            yield block, "act2" if hasattr(block, "act2") else "act1"


def _activation_behind_gate(model: MobileNetV3) -> None:
    for block, name in _gated_blocks(model):
        block.se = nn.Sequential(block.se, copy.deepcopy(getattr(block, name)))


def _gate_before_activation(model: MobileNetV3) -> None:
    for block, name in _gated_blocks(model):
        block.se = nn.Sequential(block.se, getattr(block, name))
        setattr(block, name, nn.Identity())


def _exchange_sides(conv: Any) -> None:
    conv.weight.data = conv.weight.data.transpose(2, 3).contiguous()


def _round(model: MobileNetV3, dtype: torch.dtype) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype).to(tensor.dtype)
