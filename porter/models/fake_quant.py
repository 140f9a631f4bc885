"""Quantisation to 8 bits, simulated in float: what training with fake quantisation or TensorFlow Lite computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from porter.mapping.ranges import Range, levels
from porter.models.mobilenet_v3 import Gate

Integers = TypeVar("Integers", int, Tensor)  # a number or a tensor of integers
Hook = Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]
INPUT, STEM = "input", "conv_stem"  # the range of the image, and the module that gets it
# The entry by which a state dict says that its weights are rounded to 8 bits, for a network that rounds its maps too
EIGHT_BITS_ENTRY = "computes_8_bits"


def fake_quantize(model: nn.Module, ranges: Mapping[str, Range]) -> None:
    """Make ``model`` round the outputs of the modules in ``ranges`` to their 256 levels; weights are rounded at once.

    The model becomes float64: with fewer digits, a level that is off early in the network would change many later.
    Keys are modules (``blocks.1.0.act1``), weights (``blocks.1.0.conv_pw.weight``) or ``input``. The state dict says
    that it is of such a model, but has no ranges. Raises AttributeError on a name that ``model`` does not have.
    """
    model.register_buffer(EIGHT_BITS_ENTRY, torch.tensor(True))
    model.register_load_state_dict_pre_hook(_check_entry)  # type: ignore[no-untyped-call]
    model.ranges = dict(ranges)  # type: ignore[assignment]
    model.double()
    for module in model.modules():
        if hasattr(module, "inplace"):  # an activation
            module.inplace = False  # type: ignore[assignment]  # the hooks below look at inputs
        elif isinstance(module, Gate):
            module.one_operation = False  # and at what lies between its operations
    # Before the first layer and not before the model, whose forward_features can be called as well
    stem = next(module for name, module in model.named_modules() if name.endswith(STEM))
    stem.register_forward_pre_hook(lambda _module, args: (args[0].double(),))
    for name, limits in ranges.items():
        if name == INPUT:
            stem.register_forward_pre_hook(lambda _module, args, limits=limits: (quantized(args[0], limits),))
        elif name.endswith(".weight"):
            weight = model.get_parameter(name)
            with torch.no_grad():
                weight.copy_(quantized(weight, limits))
        elif limits.input_min is not None and limits.input_scale is not None:
            hook = _lookup_hook(hard_swish_table(limits), limits.input_min, limits.input_scale)
            model.get_submodule(name).register_forward_hook(hook)
        elif limits.input_zero is not None and limits.input_scale is not None:
            hook = _mean_hook(limits, limits.input_scale, round(limits.input_zero))
            model.get_submodule(name).register_forward_hook(hook)
        elif limits.skip_scale is not None and limits.branch_scale is not None:
            model.get_submodule(name).register_forward_hook(
                _addition_hook(limits, limits.skip_scale, limits.branch_scale)
            )
        else:
            model.get_submodule(name).register_forward_hook(_rounding_hook(limits))


def _check_entry(_model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_others: object) -> None:
    if any(name.startswith(prefix) for name in state_dict) and prefix + EIGHT_BITS_ENTRY not in state_dict:
        raise RuntimeError(
            "these are weights of a float network, and this model computes 8 bits: they would not be rounded. Open the "
            "file with porter.create_model(VARIANT, FILE)"
        )


def quantized(x: Tensor, limits: Range) -> Tensor:
    """``x`` at the nearest of 256 levels of ``limits``, moved so that 0 is one of them.

    FakeQuantWithMinMaxVars of tensorflow/core/kernels/fake_quant_ops_functor.h, operation by operation; where an
    integer kernel's arithmetic is known, MultiplyByQuantizedMultiplier of tensorflow/lite/kernels/internal/common.h.
    """
    low, scale = nudged(limits)
    high = low + 255 * scale
    if limits.unit is None or limits.multiplier is None:
        return (nearest_levels(x, limits) * scale).to(x.dtype)
    unit, multiplier = (_by_channel(value, x) for value in (limits.unit, limits.multiplier))
    fraction, exponent = torch.frexp(multiplier)
    levels = _shifted(_total(x, unit), torch.round(fraction * 2**31).long(), exponent, int(limits.ties_away))
    return torch.clamp(levels.double() * scale, low, high)


def _total(x: Tensor, unit: Tensor) -> Tensor:
    """The sum of 32 bits (int64) in which a kernel has ``x``; beyond its end, where biases were clipped, it wraps."""
    return (torch.round(x / unit).long() + 2**31) % 2**32 - 2**31


def _rounding_hook(limits: Range) -> Hook:
    """The levels of ``limits``; an activation is computed with the layer before it, from the layer's sum."""

    def hook(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        if limits.unit is not None and hasattr(module, "inplace"):
            unit = _by_channel(limits.unit, args[0])
            out = module.forward(_total(args[0], unit) * unit)
        return quantized(out, limits)

    return hook


def nearest_levels(x: Tensor, limits: Range) -> Tensor:
    """The numbers of the levels nearest to ``x``, counted from that of 0, as floats."""
    low, scale = nudged(limits)
    exact = x if limits.scale is not None else x.float()  # as TensorFlow does, whose ranges have no scale
    return torch.floor((torch.clamp(exact, low, low + 255 * scale) - low) / scale - round(-low / scale) + 0.5)


def _shifted(total: Tensor, multiplier: Tensor | int, exponent: Tensor, ties_away: Tensor | int) -> Tensor:
    """``total`` times ``multiplier`` / 2**31, rounded, and then times 2**``exponent``, rounded again; all int64."""
    levels = (total * multiplier + (1 << 30)) >> 31
    levels = levels << exponent.clamp(min=0)
    right = (-exponent).clamp(min=0).long()
    mask = (torch.ones_like(right) << right) - 1
    half = (mask >> 1) + (levels < 0) * ties_away
    return (levels >> right) + ((levels & mask) > half)


def _by_channel(value: float | list[float], x: Tensor) -> Tensor:
    """A number, or one for each channel of ``x`` (N, C, ...), so that it multiplies ``x``."""
    values = torch.tensor(value, dtype=torch.float64)
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (x.ndim - 2))


def nudged(limits: Range) -> tuple[float, float]:
    """The lowest level and the distance of levels; in float32, as TensorFlow works them out, where it is not stored."""
    scale, zero = levels(limits)
    lowest = -zero * scale
    return (lowest if limits.scale is not None else float(np.float32(lowest))), scale


def _mean_hook(limits: Range, input_scale: float, input_zero: int) -> Hook:
    """The mean over a map as TensorFlow Lite's integer kernels make it.

    Mean of optimized/integer_ops/mean.h sums levels, zero and all, and takes what the zeros have contributed away
    behind the rounding. It rounds ties upwards in blocks of 16 channels, and away from zero in those left over.
    QuantizedMeanOrSum of reference/reduce.h, which drops the axes, takes the zeros away first, and divides the
    multiplier by the number of positions, in integers.
    """
    low, scale = nudged(limits)
    high = low + 255 * scale
    zero = math.copysign(math.floor(abs(input_zero * input_scale / scale) + 0.5), input_zero)

    def hook(_module: nn.Module, args: tuple[Tensor], _out: Tensor) -> Tensor:
        channels, count = args[0].shape[1], args[0].shape[2] * args[0].shape[3]
        total = (torch.round(args[0] / input_scale).long() + input_zero).sum((2, 3), keepdim=True)
        if limits.axes_dropped:
            multiplier, right = _fixed_point(input_scale / scale)
            left = min(count.bit_length() - 1, 31 - right)
            exponent = torch.tensor(-right - left)
            levels = _shifted(total - input_zero * count, (multiplier << left) // count, exponent, ties_away=1)
        else:
            share = float(np.float32(input_scale) / (np.float32(count) * np.float32(scale)))
            left_over = (torch.arange(channels) >= channels // 16 * 16).long()[:, None, None]
            multiplier, right = _fixed_point(share)
            levels = _shifted(total, multiplier, torch.tensor(-right), left_over) - zero
        return torch.clamp(levels.double() * scale, low, high)

    return hook


def _addition_hook(limits: Range, skip: float, branch: float) -> Hook:
    """A block's output as TensorFlow Lite's integer addition makes it (AddElementwise of kernels/internal/add.h).

    Both inputs, in levels ``skip`` and ``branch`` apart, are brought to one scale with 20 more bits and added there.
    LiteRT 2.3 rounds each input once and the sum twice: any other way, levels differ in some of ten million sums.
    """
    low, scale = nudged(limits)
    common = 2 * max(skip, branch)
    factors = [_fixed_point(value / common) for value in (skip, branch)]
    out_factor = _fixed_point(common / ((1 << 20) * scale))

    def hook(_module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        levels = (torch.round(args[0] / skip).long(), torch.round((out - args[0]) / branch).long())
        first, second = (_multiply_once(level << 20, by) for level, by in zip(levels, factors, strict=True))
        return torch.clamp(_multiply(first + second, out_factor).double() * scale, low, low + 255 * scale)

    return hook


def _fixed_point(value: float) -> tuple[int, int]:
    """``value`` as a 31-bit fraction and a shift to the right (QuantizeMultiplier)."""
    fraction, exponent = math.frexp(value)
    multiplier = round(fraction * 2**31)
    return (multiplier // 2, 1 - exponent) if multiplier == 1 << 31 else (multiplier, -exponent)


def _multiply_once(x: Tensor, factor: tuple[int, int]) -> Tensor:
    """``x`` times ``factor``, rounded to the nearest at the end, ties upwards."""
    multiplier, shift = factor
    bits = 31 + shift
    return (x * multiplier + (1 << (bits - 1))) >> bits


def _multiply(x: Tensor, factor: tuple[int, int]) -> Tensor:
    """MultiplyByQuantizedMultiplierSmallerThanOneExp: both roundings are to the nearest, ties away from zero."""
    multiplier, shift = factor
    product = x * multiplier
    # SaturatingRoundingDoublingHighMul truncates towards zero behind a nudge of the product's sign
    nudged_product = torch.where(product >= 0, product + (1 << 30), product + 1 - (1 << 30))
    high = torch.div(nudged_product, 1 << 31, rounding_mode="trunc")
    return _shift_right(high, shift)


def _lookup_hook(outputs: list[float], low: float, scale: float) -> Hook:
    table = torch.tensor(outputs, dtype=torch.float64)

    def hook(_module: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
        return table[torch.round((args[0] - low) / scale).long().clamp(0, 255)]

    return hook


def hard_swish_table(limits: Range) -> list[float]:
    """What TensorFlow Lite's integer hard swish makes of each of 256 input levels.

    HardSwish of tensorflow/lite/kernels/internal/reference/hard_swish.h, in 16-bit fixed point.
    """
    out_low, out_scale = nudged(limits)
    assert limits.input_min is not None
    assert limits.input_scale is not None
    zero, out_zero = round(-limits.input_min / limits.input_scale), round(-out_low / out_scale)
    fine_scale = limits.input_scale / 128
    out_multiplier, out_exponent = _multiplier(fine_scale / out_scale)
    gate_multiplier, gate_exponent = _multiplier(fine_scale / (3 / 32768))
    table = []
    for level in range(256):
        fine = (level - zero) * 128
        value = _high_half(fine, out_multiplier)
        gate = fine
        if gate_exponent > 0:
            gate = _saturate(gate << (gate_exponent - 1))
        gate = _high_half(gate, gate_multiplier)
        if gate_exponent > 0:
            gate = _saturate(gate << 1)
        elif gate_exponent < 0:
            gate = _shift_right(gate, -gate_exponent)
        gate = (gate + 32768) >> 1
        product = int(gate * value / 32768)  # towards zero
        output = _shift_right(product, -out_exponent) + out_zero
        table.append((min(max(output, 0), 255) - out_zero) * out_scale)
    return table


def _multiplier(value: float) -> tuple[int, int]:
    """``value`` as a 16-bit fraction and a power of 2 (QuantizeMultiplier, DownScaleInt32ToInt16Multiplier)."""
    fraction, exponent = math.frexp(value)
    return min((min(round(fraction * 2**31), 2**31 - 1) + (1 << 15)) >> 16, 32767), exponent


def _high_half(a: int, b: int) -> int:
    """SaturatingRoundingDoublingHighMul of 16-bit integers."""
    return _saturate((a * b + (1 << 14)) >> 15)


def _saturate(value: int) -> int:
    return min(max(value, -32768), 32767)


def _shift_right(value: Integers, bits: int) -> Integers:
    """RoundingDivideByPOT: ties away from zero. ``bits`` may not be negative."""
    mask = (1 << bits) - 1
    return (value >> bits) + ((value & mask) > (mask >> 1) + (value < 0))
