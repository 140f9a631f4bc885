"""The names that torchvision's segmentation models give to MobileNetV3's modules."""

from __future__ import annotations

from porter.network.network import Network


def torchvision_names(network: Network) -> dict[str, str]:
    """timm's name of each module of the backbone -> torchvision's (``lraspp_mobilenet_v3_large``)."""
    names = _unit("conv_stem", "bn1", "act1", "backbone.0")
    for number, block in enumerate(network.blocks, 1):
        at, inside = block.module, f"backbone.{number}.block"
        names[at] = f"backbone.{number}"
        step = norm = 0
        if block.expands:
            norm += 1
            conv = "conv_exp" if block.kind == "fused" else "conv_pw"
            names |= _unit(f"{at}.{conv}", f"{at}.bn{norm}", f"{at}.act{norm}", f"{inside}.{step}")
            step += 1
        if block.depthwise:
            norm += 1
            names |= _unit(f"{at}.conv_dw", f"{at}.bn{norm}", f"{at}.act{norm}", f"{inside}.{step}")
            step += 1
        if block.squeezed:
            names |= {f"{at}.se.conv_reduce": f"{inside}.{step}.fc1", f"{at}.se.conv_expand": f"{inside}.{step}.fc2"}
            step += 1
        names |= _unit(f"{at}.{block.project}", f"{at}.bn{norm + 1}", "", f"{inside}.{step}")
    last = f"backbone.{len(network.blocks) + 1}"
    return names | _unit(network.last_conv, network.last_norm, network.last_act, last)


def _unit(conv: str, norm: str, act: str, unit: str) -> dict[str, str]:
    """A convolution, its batch norm and activation as the members of a sequence."""
    names = {conv: f"{unit}.0", norm: f"{unit}.1"}
    return names | ({act: f"{unit}.2"} if act else {})
