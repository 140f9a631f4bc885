"""``fold``: a network for inference, its batch norms in the convolutions before them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from porter.errors import ArtifactError
from porter.mapping.apply import fold_batch_norm
from porter.models.build import Whole
from porter.models.fake_quant import EIGHT_BITS_ENTRY
from porter.models.mobilenet_v3 import MobileNetV3Features
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
    for module in modules.values():
        if hasattr(module, "network"):
            module.network = replace(network, bn_folded=True)
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
