"""MobileNetV3 (arXiv 1905.02244) as slim defines it, built from a mapping file's network table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from porter.models.blocks import (
    ConvNormAct,
    DepthwiseSeparable,
    EdgeResidual,
    InvertedResidual,
    Projection,
    VectorConv2d,
    activation,
    batch_norm,
    pointwise,
    state_gate,
)
from porter.models.feature_info import FeatureInfo, pyramid
from porter.models.same_padding import SameConv2d
from porter.network.network import Network

if TYPE_CHECKING:
    import numpy as np

BLOCKS = {
    "separable": DepthwiseSeparable,
    "inverted_residual": InvertedResidual,
    "fused": EdgeResidual,
    "projection": Projection,
}


def check_images(x: Tensor | np.ndarray, channels: int) -> None:
    """Raise TypeError or ValueError if ``x`` is not a batch of images, (N, ``channels``, H, W) floats."""
    if x.ndim != 4 or x.shape[1] != channels:
        move = "permute" if isinstance(x, Tensor) else "transpose"
        hint = f"; NHWC? use x.{move}(0, 3, 1, 2)" if x.ndim == 4 and x.shape[3] == channels else ""
        hint = "; one image? use x[None]" if x.ndim == 3 and x.shape[0] == channels else hint
        raise ValueError(f"the network takes (N, {channels}, H, W), not {tuple(x.shape)}{hint}")
    if not str(x.dtype).removeprefix("torch.").startswith(("float", "bfloat")):
        raise TypeError(f"the network takes floats in [-1, 1], not {x.dtype}; for 8-bit RGB: x / 127.5 - 1")


@torch.fx.wrap  # one operation for who traces the network symbolically
def made_ready(x: Tensor, channels: int) -> Tensor:
    """``x`` in the fastest memory layout. Raises TypeError or ValueError if it is not a batch of images."""
    if torch.compiler.is_compiling():  # a compiler chooses for itself
        return x
    if not isinstance(x, Tensor):
        raise TypeError(f"the network takes a tensor of (N, {channels}, H, W), not {type(x).__name__}")
    check_images(x, channels)
    # Every layer follows the layout that it is given; convolutions on CPU are faster in this one
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class Trunk(nn.Module):
    """Stem and blocks: (N, channels, H, W) -> (N, last, H / 32, W / 32), sizes rounded up."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.pretrained_cfg: dict[str, Any] = {}  # timm's description; create_model fills it in
        state_gate(self, network)
        self.conv_stem = SameConv2d(
            network.channels, network.stem, network.stem_kernel, network.stem_stride, bias=network.bn_folded
        )
        self.bn1 = batch_norm(network.stem, network)
        self.act1 = activation(network.stem_activation)
        stages: list[list[nn.Module]] = [[] for _ in range(network.blocks[-1].stage + 1)]
        for block in network.blocks:
            stages[block.stage].append(BLOCKS[block.kind](block, network))
        self.last_in_blocks = network.pools_in_layers and network.last > 0
        if self.last_in_blocks:
            stages.append([ConvNormAct(network.blocks[-1].out, network.last, network.last_activation, network)])
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    def forward_stem(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, stem, H / 2, W / 2)."""
        return self.act1(self.bn1(self.conv_stem(made_ready(x, self.network.channels))))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the blocks make of images."""
        return self.blocks(self.forward_stem(x))


class MobileNetV3(Trunk):
    """The classifier: (N, channels, H, W) float, RGB in [-1, 1] -> (N, num_classes) logits.

    State-dict keys are those of timm's ``tf_mobilenetv3_*``. ``num_classes`` 0 gives the
    (N, features) embedding. ``dropout`` is the probability of dropping, in training mode alone. Weights are
    PyTorch's defaults; ``initialize`` gives slim's.
    """

    def __init__(self, network: Network, num_classes: int = 1000, dropout: float | None = None) -> None:
        super().__init__(network)
        self.num_classes = num_classes
        self.dropout = network.dropout if dropout is None else dropout
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_head: nn.Module
        self.bn2: nn.Module
        self.act2: nn.Module
        if not network.last:
            self.conv_head, self.bn2, self.act2 = nn.Identity(), nn.Identity(), nn.Identity()
        elif not self.last_in_blocks:
            self.conv_head = pointwise(network.blocks[-1].out, network.last, network)
            self.bn2 = batch_norm(network.last, network)
            self.act2 = activation(network.last_activation)
        elif network.head:
            self.conv_head = VectorConv2d(network.last, network.head)
            self.act2 = activation(network.head_activation)
        else:
            self.conv_head = self.act2 = nn.Identity()
        self.classifier: nn.Module = nn.Linear(network.features, num_classes) if num_classes else nn.Identity()
        self.num_features, self.head_hidden_size = network.map_channels, network.features
        self.feature_info = FeatureInfo(pyramid(network))

    def get_classifier(self) -> nn.Module:
        """The last layer; an identity where there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, untrained classifier in place of the last layer; 0 leaves the embedding."""
        self.num_classes = num_classes
        was = next(self.parameters())
        self.classifier = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        initialize(self.classifier)
        self.classifier.to(was.device, was.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, before pooling."""
        x = super().forward_features(x)
        return x if self.last_in_blocks else self.act2(self.bn2(self.conv_head(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, last, h, w) feature map -> logits, or with ``pre_logits`` the (N, features) embedding."""
        x = self.global_pool(x)
        if self.last_in_blocks:
            x = self.act2(self.conv_head(x))
        x = x.flatten(1)
        x = F.dropout(x, self.dropout, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class MobileNetV3Features(Trunk):
    """The feature pyramid: a list of (N, C, H / r, W / r) maps, the last before each halving.

    ``out_indices`` selects among ``channels`` and ``reductions``; state-dict keys are the trunk's.
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__(network)
        taps = pyramid(network)
        indices = range(len(taps)) if out_indices is None else out_indices
        chosen = [taps[index] for index in indices]
        self.stages = [tap.stage for tap in chosen]
        self.endpoints = [tap.endpoint for tap in chosen]  # TensorFlow's names of the maps
        self.channels = [tap.channels for tap in chosen]
        self.reductions = [tap.reduction for tap in chosen]
        self.feature_info = FeatureInfo(chosen)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, channels, H, W) -> feature maps, in the order of ``out_indices``."""
        x = self.forward_stem(x)
        maps = {-1: x}
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in self.stages:
                maps[number] = x
        return [maps[stage] for stage in self.stages]


def initialize(module: nn.Module) -> None:
    """slim's training initialisation: truncated normal of std 0.09 for convolutions, zero biases."""
    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(child.weight, std=0.09, a=-0.18, b=0.18)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
