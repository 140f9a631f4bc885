"""The main job: a TensorFlow checkpoint in, an artifact out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from porter.atomic import refuse_existing
from porter.errors import MappingError
from porter.loaders import Checkpoint, open_checkpoint
from porter.loaders.weights import Weights
from porter.mapping.files import load_mapping, load_variant, mapping_digest
from porter.mapping.identify import identify, match_variants
from porter.mapping.network import Network, build_network
from porter.mapping.plan import ArtifactLayout, Plan, make_plan
from porter.mapping.schema import VariantMapping

if TYPE_CHECKING:
    from torch import Tensor

    from porter.artifacts.metadata import Metadata
    from porter.mapping.carry_out import Ported

PathLike = str | os.PathLike[str]


class Port(NamedTuple):
    """A checkpoint, the mapping chosen for it, its network (with the checkpoint's own gate) and the plan."""

    checkpoint: Checkpoint
    mapping: VariantMapping
    network: Network
    plan: Plan

    @property
    def target_network(self) -> Network:
        """The network that the ported weights are made for."""
        return replace(self.network, gate=self.plan.gate)


def plan_port(
    checkpoint: PathLike | Checkpoint,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    layout: ArtifactLayout = "timm",
    keep_background: bool = False,
    num_classes: int | None = None,
) -> Port:
    """Open ``checkpoint``, choose its mapping and plan the port, reading no tensor.

    ``variant`` is found from the shapes when left out; ``mapping`` is a user's own YAML file. ``layout``
    ``timm`` makes the weights exact in definitions whose squeeze-excite gate is 1/6, ``slim`` leaves them as
    they are. Raises CheckpointError or MappingError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint, weights)
    chosen = choose_mapping(opened, variant, mapping)
    network = build_network(chosen)
    plan = make_plan(
        chosen,
        network,
        opened,
        layout=layout,
        keep_background=keep_background,
        num_classes=num_classes,
    )
    return Port(opened, chosen, network, plan)


def convert(
    checkpoint: PathLike,
    output: PathLike | None = None,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    layout: ArtifactLayout = "timm",
    keep_background: bool = False,
    num_classes: int | None = None,
    force: bool = False,
) -> tuple[Path, Port]:
    """Port ``checkpoint`` and write ``output`` (``.pth`` or ``.safetensors``; ``<variant>.pth`` when left out).

    Other arguments as for ``plan_port``. Returns the path written and what was done. Raises PorterError
    and leaves no file behind.
    """
    if output is not None:  # before any work
        refuse_existing(Path(output), force)
    port = plan_port(
        checkpoint,
        variant,
        mapping=mapping,
        weights=weights,
        layout=layout,
        keep_background=keep_background,
        num_classes=num_classes,
    )
    path = Path(output if output is not None else f"{port.mapping.variant}.pth")
    from porter.artifacts.files import check_suffix, save_artifact
    from porter.mapping.carry_out import carry_out

    check_suffix(path)
    refuse_existing(path, force)
    ported = carry_out(port.plan, port.checkpoint)
    save_artifact(path, as_torch(ported), describe(port, ported), force)
    return path, port


def as_torch(ported: Ported) -> dict[str, Tensor]:
    """Ported arrays as tensors that share their memory."""
    import torch

    return {name: torch.from_numpy(values) for name, values in ported.tensors.items()}


def describe(port: Port, ported: Ported) -> Metadata:
    """The metadata of an artifact made by ``port``."""
    from importlib.metadata import version

    from porter.artifacts.metadata import Metadata

    plan = port.plan
    return Metadata(
        tool=f"mnv3-port {version('mnv3-port')}",
        variant=plan.variant,
        layout=plan.layout,
        gate=plan.gate,
        source_gate=plan.source_gate,
        num_classes=plan.num_classes,
        background_dropped=plan.background_dropped,
        weights=port.checkpoint.weights,
        step=port.checkpoint.step,
        sources=port.checkpoint.digests(),
        mapping=mapping_digest(port.mapping),
        fold_nudges=ported.fold_nudges,
    )


def choose_mapping(checkpoint: Checkpoint, variant: str | None, mapping: PathLike | None) -> VariantMapping:
    """The mapping to use: the user's file, else the named variant's, else that of the variant found.

    Raises MappingError when the named variant is wrong and another one fits, or when none fits.
    """
    if mapping is not None:
        chosen = load_mapping(Path(mapping))
        if variant is not None and variant != chosen.variant:
            raise MappingError(f"{mapping}: is a mapping of {chosen.variant}, not of {variant}")
        return chosen
    found = identify(checkpoint)
    if variant is None:
        if found is None:
            best = match_variants(checkpoint)[0]
            raise MappingError(
                f"{checkpoint.given}: none of the six variants fits; closest is {best.variant} with {best.fitting} of "
                f"{best.expected} variables (--variant {best.variant} lists the differences; --mapping takes your own)"
            )
        return load_variant(found.variant)
    loaded = load_variant(variant)
    if found is not None and found.variant != variant:
        raise MappingError(
            f"{checkpoint.given}: is a {found.variant} checkpoint, not {variant}; use --variant {found.variant}"
        )
    return loaded
