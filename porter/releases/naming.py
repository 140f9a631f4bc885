"""Names of releases, and the claims that they make."""

from __future__ import annotations

from porter.artifacts.metadata import Metadata
from porter.mapping.files import load_variant, variant_named
from porter.mapping.plan import Plan
from porter.mapping.schema import VariantMapping
from porter.network.network import build_network
from porter.network.nodes import nodes
from porter.port import Port

RELEASED_CLASSES = 1001
Made = Metadata | Plan  # what is known of weights, after and before they are made


def has_released_form(port: Port) -> bool:
    """Whether a checkpoint looks like one that Google released: 1,001 classes, slim's plain names, the released step.

    Anybody's weights may look like that. Claims of training, data and licence need the tarball's SHA-256 as well.
    """
    training, names = port.mapping.training, port.mapping.names or port.mapping.variables
    if training is None or training.step is None or names or port.plan.ranges or port.plan.dequantized:
        return False
    stored_plain = all(variable.stored_as == variable.name for variable in port.checkpoint.values())
    released = port.classes == RELEASED_CLASSES and port.checkpoint.step == training.step
    return port.checkpoint.format == "bundle" and stored_plain and released


def why_not_timm(mapping: VariantMapping, made: Made) -> str | None:
    """Why timm's class does not compute these weights; None if it does."""
    network = build_network(mapping)
    if mapping.timm is None:
        return "timm has no such architecture"
    if made.ranges:
        return "these weights compute 8 bits, and timm's class has no fake quantisation"
    if made.bn_folded or network.bn_folded:
        return "batch norms are folded into these weights, and timm's class has them"
    if network.blocks[0].kind == "projection":
        return "timm's class has a ReLU after the first projection, unlike the original network"
    named = variant_named(mapping.timm)
    if named and nodes(network, classes=1) != nodes(build_network(load_variant(named)), classes=1):
        return "this network is not that of timm's class: its source states other layers or constants"
    if made.layout != "timm":
        return "these weights are for slim's squeeze-excite gate, and timm's class has another"
    return None


def plain_name(mapping: VariantMapping, made: Made, dequantized: bool = False) -> str:
    """A name without claims: the variant, and whether it computes 8 bits or was dequantised."""
    kind = "_8bit" if made.ranges else "_dequantized" if dequantized else ""
    return f"mobilenetv3_{mapping.variant}{kind}"


def architecture(mapping: VariantMapping, made: Made) -> str:
    """The name for ``config.json``: timm's architecture if timm's class computes these weights, else ours."""
    if why_not_timm(mapping, made) is None:
        return str(mapping.timm)
    return plain_name(mapping, made)
