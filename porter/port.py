"""The port of a checkpoint: its mapping, network, plan and weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace as replace_struct

from porter.artifacts.artifact import Artifact, checksum, find_artifact
from porter.artifacts.metadata import Metadata
from porter.artifacts.source import StoredPort, as_source
from porter.errors import ArtifactError, MappingError, NotTheNetworkError, Option
from porter.mapping.backbone import ONE_OF_TWO, as_backbone, by_other_names, find_backbone, hint
from porter.mapping.files import list_networks, load_variant, mapping_digest
from porter.mapping.identify import from_file, match_variants
from porter.mapping.options import DEFAULT_OPTIONS, PathLike, PortOptions
from porter.mapping.plan import Plan, fit, make_plan
from porter.mapping.schema import VariantMapping
from porter.mapping.stated import FACTS, Stated, as_stated, difference
from porter.network.network import Network
from porter.sources import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from porter.mapping.apply import Ported


class Port(NamedTuple):
    """A checkpoint, the mapping ``chosen`` for it, the same with what the file states, its network and the plan.

    ``stated`` is what ``mapping`` has otherwise than its variant's own, ``assumed`` what the file leaves open,
    ``white`` its number for a white pixel (255, 1, or None where it does not say). ``classes``: outputs of the
    checkpoint's classifier, background included; 0 if there is none.
    """

    checkpoint: Checkpoint
    chosen: VariantMapping
    mapping: VariantMapping
    stated: Stated
    assumed: tuple[str, ...]
    white: float | None
    network: Network
    classes: int
    plan: Plan

    @property
    def target_network(self) -> Network:
        """The network for which the ported weights are made."""
        return replace(self.network, gate=self.plan.gate, bn_folded=self.plan.bn_folded)


def plan_port(checkpoint: PathLike | Checkpoint, options: PortOptions = DEFAULT_OPTIONS) -> Port:
    """Open ``checkpoint``, or an artifact, choose its mapping and plan the port. Reads no values of a checkpoint.

    Raises CheckpointError, ArtifactError or MappingError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else _opened(checkpoint, options)
    if isinstance(opened, StoredPort):
        if options.backbone:
            raise ArtifactError(f"{opened.given}: is a port, whose backbone create_model takes (features_only=True)")
        assert opened.mapping is not None
        return plan_opened(opened, opened.mapping, options)
    if options.backbone:
        return plan_opened(opened, choose_backbone(opened, options.variant, options.mapping), options)
    chosen = None
    try:
        chosen = choose_mapping(opened, options.variant, options.mapping)
        return plan_opened(opened, chosen, options)
    except NotTheNetworkError:
        raise
    except MappingError:
        unasked = options.mapping is None and options.variant is None
        whole = unasked and chosen and fit(chosen, opened).classes  # a classifier that fits; the error says why
        if unasked and not whole and (refusal := hint(opened)):
            raise refusal from None
        raise


def _opened(source: PathLike, options: PortOptions) -> Checkpoint:
    file = find_artifact(source)
    return open_checkpoint(source, options.weights) if file is None else as_source(file, options)


def plan_opened(opened: Checkpoint, mapping: VariantMapping, options: PortOptions = DEFAULT_OPTIONS) -> Port:
    """Plan the port of ``opened`` by ``mapping``. Raises MappingError."""
    chosen = mapping
    assumed: tuple[str, ...] = FACTS
    if isinstance(opened, StoredPort):  # its mapping is of what its source stated
        stated, white = opened.origin.stated if opened.origin else Stated(), None
    else:
        mapping, assumed, white = as_stated(chosen, opened)
        known = mapping.variant in list_networks()  # else its mapping travels with the port
        stated = difference(mapping, load_variant(mapping.variant) if known else chosen)
    fitted = fit(mapping, opened)
    plan = make_plan(mapping, fitted, opened, options)
    return Port(opened, chosen, mapping, stated, assumed, white, fitted.network, fitted.classes, plan)


def carry_out_port(port: Port) -> Artifact:
    """Read and port the weights. Raises CheckpointError or MappingError."""
    from porter.mapping.apply import carry_out

    ported = carry_out(port.plan, port.checkpoint)
    return Artifact(ported.arrays, _describe(port, ported))


def _describe(port: Port, ported: Ported) -> Metadata:
    plan, head = port.plan, port.network.head
    described = Metadata(
        tool=f"mnv3-port {_version()}",
        variant=plan.variant,
        layout=plan.layout,
        gate=plan.gate,
        source_gate=plan.source_gate,
        num_classes=plan.num_classes,
        background_dropped=plan.background_dropped,
        weights=port.checkpoint.weights,
        step=port.checkpoint.step,
        sources=port.checkpoint.digests(),
        mapping=mapping_digest(port.chosen),
        fold_nudges=ported.fold_nudges,
        bn_folded=plan.bn_folded,
        ranges=ported.ranges,
        stated=port.stated,
        checksum=checksum(ported.arrays),
        background=ported.background,
    )
    if isinstance(port.checkpoint, StoredPort):
        described = _of_origin(described, port.checkpoint)
    return described if head is None else replace_struct(described, **{head.KEY: head})


def _of_origin(described: Metadata, stored: StoredPort) -> Metadata:
    """What an artifact says of its source, for what is made of it."""
    origin = stored.origin
    if origin is None:
        return described
    return replace_struct(
        described,
        weights=origin.weights,
        step=origin.step,
        sources=origin.sources | (described.sources if stored.changed and not origin.changed else {}),
        mapping=origin.mapping,
        class_names=origin.class_names if len(origin.class_names) == described.num_classes else [],
        background_dropped=described.background_dropped or (origin.background_dropped and not stored.restored),
        changed=stored.changed,
    )


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("mnv3-port")


def choose_backbone(checkpoint: Checkpoint, variant: str | None, mapping: PathLike | None) -> VariantMapping:
    """The mapping of the backbone inside ``checkpoint``. Raises MappingError if there is none."""
    if mapping is not None:
        return as_backbone(choose_mapping(checkpoint, variant, mapping))
    variants = None if variant is None else [load_variant(variant).variant]
    found = find_backbone(checkpoint, variants)
    if found.exact:
        return found.mapping
    other = by_other_names(checkpoint, variants)
    if other is not None:
        return other
    raise MappingError(
        f"{checkpoint.given}: no MobileNetV3 backbone in it; closest is {found.mapping.variant} with {found.fitting} "
        f"of {found.expected} variables. `mnv3-port draft` proposes a mapping for other names"
    )


def choose_mapping(checkpoint: Checkpoint, variant: str | None, mapping: PathLike | None) -> VariantMapping:
    """The mapping to use: the user's file, else the named variant's, else that of the variant found.

    Raises MappingError if another variant than the named one fits, or none fits.
    """
    if mapping is not None:
        chosen = from_file(Path(mapping), checkpoint)
        if variant not in (None, chosen.variant, chosen.timm):
            raise MappingError(f"{mapping}: is a mapping of {chosen.variant}, not of {variant}")
        return chosen
    if variant is not None:
        named = match_variants(checkpoint, [load_variant(variant).variant])[0]
        if named.exact:
            return named.mapping
    matches = match_variants(checkpoint)
    best = matches[0]
    exact = [match.mapping for match in matches if match.exact]
    places = list(dict.fromkeys(one.scope or next(iter(one.variables.values()), "") for one in exact))
    if len(places) > 1 and variant is None:
        raise MappingError(f"{checkpoint.given}: holds {len(places)} networks, {' and '.join(places)}; {ONE_OF_TWO}")
    if variant is None:
        if not best.exact:
            raise MappingError(
                f"{checkpoint.given}: no variant fits; closest is {best.variant} with {best.fitting} of "
                f"{best.expected} variables. A mapping file of your own may fit; to list the differences use",
                option=Option("variant", best.variant),
            )
        return best.mapping
    if best.exact:
        raise MappingError(
            f"{checkpoint.given}: is a {best.variant} checkpoint, not {variant}; use",
            option=Option("variant", best.variant),
        )
    return named.mapping
