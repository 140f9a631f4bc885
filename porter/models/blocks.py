"""The building blocks of MobileNetV3. Attribute names are timm's, so that state dicts are interchangeable."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.mapping.gate import GATE_IN_16_BITS
from porter.models.same_padding import SameConv2d
from porter.network.network import GATE_ENTRY, TIMM_GATE, Block, Network
from porter.network.spec import ACTIVATIONS, Activation


def activation(name: Activation) -> nn.Module:
    """The module of the activation ``name``, which works in place."""
    made: nn.Module = getattr(nn, ACTIVATIONS[name].torch)(inplace=True)
    return made


def batch_norm(channels: int, network: Network) -> nn.Module:
    """Batch norm with TensorFlow's constants (PyTorch's momentum is 1 - decay); nothing in a folded network."""
    if network.bn_folded:
        return nn.Identity()
    return nn.BatchNorm2d(channels, eps=network.epsilon, momentum=1 - network.decay)


class Gate(nn.Module):
    """Squeeze-excite gate ``relu6(x + 3) * slope``; slim's slope is 0.16667, not 1/6.

    ``fused`` computes a slope of 1/6 in one operation; without it, ``relu6`` has an output to look at.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.fused = slope == TIMM_GATE
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x) if self.fused else self.relu6(x + 3.0) * self.slope

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


def state_gate(model: nn.Module, network: Network) -> None:
    """Give ``model`` a buffer that states its gate, where that is not 1/6.

    Loading a state dict for another gate raises RuntimeError with a sentence, whether it is strict or not. torch.export
    and torch.jit keep the buffer; torch.fx drops what is not computed with.
    """
    if network.stated_gate is not None:
        model.register_buffer(GATE_ENTRY, torch.tensor(network.stated_gate))
    model.register_load_state_dict_pre_hook(_check_gate)  # type: ignore[no-untyped-call]


def _check_gate(model: Any, state_dict: dict[str, Tensor], prefix: str, *_others: Any) -> None:
    own, entry = model.network.stated_gate, state_dict.get(prefix + GATE_ENTRY)
    given = None if entry is None else float(entry)
    if own is None and given is None:
        return
    if own is not None and given is not None and math.isclose(own, given, rel_tol=GATE_IN_16_BITS):
        state_dict[prefix + GATE_ENTRY] = torch.tensor(own)  # not as it was rounded
        return
    gates = [name for name, part in model.named_modules() if isinstance(part, Gate)]
    blocks = [f"{prefix}{name.rsplit('.', 2)[0]}." for name in gates]  # with squeeze-excite, and what its gate scales
    if any(name.startswith(block) for name in state_dict for block in blocks):
        raise RuntimeError(  # before anything is loaded
            f"these weights are for a squeeze-excite gate of {given or TIMM_GATE:.6g}, and this network has "
            f"{own or TIMM_GATE:.6g}: it would compute something else. Open the file with porter.create_model(VARIANT, "
            "FILE), which folds the gate"
        )


class VectorConv2d(nn.Conv2d):
    """A 1x1 convolution of (N, C, 1, 1), what pooling leaves: computed as the matrix product that it is."""

    def __init__(self, channels_in: int, out: int) -> None:
        super().__init__(channels_in, out, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, channels_in, 1, 1) -> (N, out, 1, 1)."""
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class SqueezeExcite(nn.Module):
    """Scales the channels of (N, C, H, W) by a gate computed from their means."""

    def __init__(self, channels: int, squeezed: int, gate: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv_reduce = VectorConv2d(channels, squeezed)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = VectorConv2d(squeezed, channels)
        self.gate = Gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(self.pool(x)))))


def _squeeze_excite(block: Block, network: Network) -> nn.Module:
    return SqueezeExcite(block.expanded, block.squeezed, network.gate) if block.squeezed else nn.Identity()


def _depthwise(block: Block, network: Network) -> SameConv2d:
    channels, bias = block.expanded, network.bn_folded
    return SameConv2d(channels, channels, block.kernel, block.stride, block.dilation, groups=channels, bias=bias)


def pointwise(channels_in: int, out: int, network: Network) -> nn.Conv2d:
    """A 1x1 convolution with a batch norm behind it, or the bias for one."""
    return nn.Conv2d(channels_in, out, 1, bias=network.bn_folded)


class DepthwiseSeparable(nn.Module):
    """A block with expansion 1: depthwise, squeeze-excite, 1x1 projection."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv_dw = _depthwise(block, network)
        self.bn1 = batch_norm(block.expanded, network)
        self.act1 = activation(block.activation)
        self.se = _squeeze_excite(block, network)
        self.conv_pw = pointwise(block.expanded, block.out, network)
        self.bn2 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(self.act1(self.bn1(self.conv_dw(x))))
        out = self.bn2(self.conv_pw(out))
        return out + x if self.residual else out


class InvertedResidual(nn.Module):
    """A block with expansion: 1x1 expansion, depthwise, squeeze-excite, 1x1 projection."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv_pw = pointwise(block.channels_in, block.expanded, network)
        self.bn1 = batch_norm(block.expanded, network)
        self.act1 = activation(block.activation)
        self.conv_dw = _depthwise(block, network)
        self.bn2 = batch_norm(block.expanded, network)
        self.act2 = activation(block.activation)
        self.se = _squeeze_excite(block, network)
        self.conv_pwl = pointwise(block.expanded, block.out, network)
        self.bn3 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv_pw(x)))
        out = self.se(self.act2(self.bn2(self.conv_dw(out))))
        out = self.bn3(self.conv_pwl(out))
        return out + x if self.residual else out


class EdgeResidual(nn.Module):
    """A fused block: k x k expansion, 1x1 projection."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv_exp = SameConv2d(
            block.channels_in, block.expanded, block.kernel, block.stride, block.dilation, bias=network.bn_folded
        )
        self.bn1 = batch_norm(block.expanded, network)
        self.act1 = activation(block.activation)
        self.conv_pwl = pointwise(block.expanded, block.out, network)
        self.bn2 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv_pwl(self.act1(self.bn1(self.conv_exp(x)))))
        return out + x if self.residual else out


class Projection(nn.Module):
    """A fused block with expansion 1: the projection alone. Linear in slim; timm's has a ReLU."""

    def __init__(self, block: Block, network: Network) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv = pointwise(block.expanded, block.out, network)
        self.bn1 = batch_norm(block.out, network)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv(x))
        return out + x if self.residual else out


class ConvNormAct(nn.Module):
    """1x1 convolution, batch norm, activation."""

    def __init__(self, channels_in: int, out: int, act: Activation, network: Network) -> None:
        super().__init__()
        self.conv = pointwise(channels_in, out, network)
        self.bn1 = batch_norm(out, network)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))
