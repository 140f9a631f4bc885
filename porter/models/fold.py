"""``fold``: a network for inference, its batch norms in the convolutions before them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from porter.errors import ArtifactError
from porter.mapping.apply import fold_batch_norm
from porter.models.build import Whole
from porter.models.fake_quant import EIGHT_BITS_ENTRY
from porter.models.mobilenet_v3 import MobileNetV3Features, SameConv2d
from porter.network.nodes import nodes, torchvision_names

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """A copy of ``model`` for inference, with the batch norms folded into the convolutions before them.

    It is the same function but for float32 rounding, and faster. Weights are worked out in float64 and rounded once.
    Its state dict is what ``convert`` writes with ``fold_bn=True``.

    Args:
        model: What ``create_model`` gives, on any device.

    Returns:
        The copy, in eval mode; a model without batch norms is copied as it is.

    Raises:
        PorterError: On a model that computes 8 bits, or one that is not MobileNetV3's own.

    Example:
        >>> fast = porter.fold(porter.create_model("small_075", source))
        >>> fast(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    folded = copy.deepcopy(model).eval()
    if not isinstance(model, (Whole, MobileNetV3Features)):
        raise ArtifactError(f"{type(model).__name__}: only what create_model gives can be folded")
    if hasattr(model, EIGHT_BITS_ENTRY):
        raise ArtifactError("a model that computes 8 bits has nothing to fold; its float network has, fake_quant=False")
    network, own = model.network, {}
    if network.head is not None:  # its entries have other names than its modules
        own = {name: f"backbone.{module}" for module, name in torchvision_names(network).items()}
    modules = dict(folded.named_modules())
    for node in nodes(network, classes=1):
        layer, norm = own.get(node.layer, node.layer), own.get(node.norm, node.norm)
        if node.layer and node.norm and layer in modules and not network.bn_folded:
            _fold_one(layer, modules[layer], modules[norm])
            folded.set_submodule(norm, nn.Identity())
    for name, module in modules.items():
        if hasattr(module, "network"):
            module.network = replace(network, bn_folded=True)
        if isinstance(module, SameConv2d) and HalvingConv2d.can_be(module):
            folded.set_submodule(name, HalvingConv2d(module))
    return folded


def _fold_one(name: str, layer: nn.Module, norm: nn.Module) -> None:
    if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        raise ArtifactError(f"{name}: is a {type(layer).__name__} with a {type(norm).__name__} behind it; cannot fold")
    entries = {
        f"{at}.{entry}": value.detach().cpu().double().numpy()
        for at, module in (("layer", layer), ("norm", norm))
        for entry, value in module.state_dict().items()
    }
    weight, bias = (torch.from_numpy(one) for one in fold_batch_norm(entries, "layer", "norm", norm.eps))
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.bias = nn.Parameter(bias.to(layer.weight), layer.weight.requires_grad)


class HalvingConv2d(nn.Conv2d):
    """A ``SameConv2d`` of stride 2, whose kernel is stored with the row and column of zeros that SAME padding asks for.

    SAME pads an even side by one pixel more behind than in front. With the zeros first in the kernel, equal padding at
    both ends computes the same; an odd side takes one pixel more at each. State dicts have the kernel without zeros.
    """

    def __init__(self, of: SameConv2d) -> None:
        height, width = of.kernel_size
        super().__init__(of.in_channels, of.out_channels, (height + 1, width + 1), 2, groups=of.groups)
        self.weight = nn.Parameter(F.pad(of.weight.detach(), ZEROS), of.weight.requires_grad)
        self.bias = of.bias
        self.register_state_dict_post_hook(_without_zeros)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_zeros)  # type: ignore[no-untyped-call]

    @staticmethod
    def can_be(layer: SameConv2d) -> bool:
        """Whether this form computes what ``layer`` does."""
        odd = all(side % 2 == 1 and side > 1 for side in layer.kernel_size)
        return odd and layer.stride == (2, 2) and layer.dilation == (1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, ceil(H / 2), ceil(W / 2))."""
        weight = self.weight
        if torch.is_grad_enabled():  # the zeros get no gradient, and stay zeros
            weight = F.pad(weight[:, :, 1:, 1:], ZEROS)
        height, width = (side // 2 - 1 for side in self.kernel_size)
        padding = height + input.shape[2] % 2, width + input.shape[3] % 2
        return F.conv2d(input, weight, self.bias, 2, padding, 1, self.groups)


ZEROS = (1, 0, 1, 0)  # before columns and rows


def _without_zeros(_layer: Any, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"][:, :, 1:, 1:].contiguous()


def _with_zeros(_layer: Any, state_dict: dict[str, Any], prefix: str, *_others: Any) -> None:
    if f"{prefix}weight" in state_dict:
        state_dict[f"{prefix}weight"] = F.pad(state_dict[f"{prefix}weight"], ZEROS)
