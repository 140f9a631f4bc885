"""Identifying a checkpoint's variant and naming scheme from its names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from porter.mapping.axes import AXES
from porter.mapping.by_graph import by_graph
from porter.mapping.files import Names, list_variants, list_with_rules_of_head, load_mapping, load_variant
from porter.mapping.plan import fit, followed_by
from porter.mapping.rules import Expected, expected_variables, first_variable
from porter.mapping.schema import VariantMapping
from porter.network.network import build_network
from porter.network.node import Shape
from porter.sources import Checkpoint

# Naming schemes to try by format; formats not listed hold TensorFlow's variables
NAMES: dict[str, tuple[Names, ...]] = {
    "tflite": ("tflite",),
    "keras": ("keras", "keras2", "keras_unnamed", "slim"),  # slim's inside a layer of TensorFlow Hub
    "tfjs": ("tfjs", "keras2", "keras", "slim"),
}
# Multipliers that people train with besides the published ones, and channels of images
MULTIPLIERS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
MOST_CHANNELS = 16
MOST_SCOPES = 16  # that are tried: each takes a comparison with every variant
TENSORFLOW_NAMES: tuple[Names, ...] = ("slim", "keras2", "keras", "garden")


class Match(NamedTuple):
    """How well a variant's ``mapping`` fits: how many of its ``expected`` variables are there in the right shape."""

    variant: str
    mapping: VariantMapping
    fitting: int
    expected: int
    classes: int

    @property
    def exact(self) -> bool:
        """True if every expected variable is there in the right shape."""
        return self.fitting == self.expected


def match_variants(checkpoint: Checkpoint, variants: Sequence[str] | None = None) -> list[Match]:
    """``variants`` (None: all), best fit first: those that fit exactly, or if none does, every one that was tried.

    Naming schemes are tried in turn until a variant fits exactly. Then come the same names below another scope, then a
    network without its classifier, and then the order of layers in the file's graph.

    A minimalistic network's variables are not a subset of the full one's: expansion widths or kernels differ, so at
    most one variant fits.
    """
    schemes = () if variants else NAMES.get(checkpoint.format, TENSORFLOW_NAMES)
    with_head = (load_variant(variant, names) for names in schemes for variant in list_with_rules_of_head(names))
    usual = []
    for mapping in chain(named(checkpoint, variants or list_variants()), with_head):
        usual.append(mapping)
        if _begins(mapping, checkpoint) and (match := matched(mapping, checkpoint)).exact:
            return [match]
    matches: list[Match] = []
    for others in (_below_scopes, _without_classes, by_graph, other_sizes):
        if not any(match.exact for match in matches):
            matches += [matched(mapping, checkpoint) for mapping in others(checkpoint, variants)]
    if not any(match.exact for match in matches):
        matches = [matched(mapping, checkpoint) for mapping in usual] + matches
    return sorted(matches, key=lambda match: -match.fitting / match.expected)


def _begins(mapping: VariantMapping, checkpoint: Checkpoint) -> bool:
    """Whether the first convolution's weight is there: without it the mapping need not be expanded."""
    first = first_variable(mapping)
    return first.source in checkpoint and checkpoint[first.source].shape == first.shape


def from_file(path: Path, checkpoint: Checkpoint) -> VariantMapping:
    """The mapping file at ``path``; of its network with the usual names, if the checkpoint has none of the file's.

    So the file for a checkpoint also serves for the ``.tflite`` of the same network. Raises MappingError.
    """
    own = load_mapping(path)
    if matched(own, checkpoint).fitting:
        return own
    usual = (load_mapping(path, names) for names in NAMES.get(checkpoint.format, TENSORFLOW_NAMES))
    return next((mapping for mapping in usual if matched(mapping, checkpoint).exact), own)


def matched(mapping: VariantMapping, checkpoint: Checkpoint) -> Match:
    """How well ``mapping`` fits ``checkpoint``."""
    _, classes, expected = fit(mapping, checkpoint)
    fitting = sum(e.source in checkpoint and checkpoint[e.source].shape == e.shape for e in expected)
    return Match(mapping.variant, mapping, fitting, len(expected), classes)


def named(checkpoint: Checkpoint, variants: Sequence[str]) -> Iterator[VariantMapping]:
    """The mappings of ``variants``, with each naming scheme in turn that files of the checkpoint's format may have."""
    for names in NAMES.get(checkpoint.format, TENSORFLOW_NAMES):
        for variant in variants:
            yield load_variant(variant, names)


def _below_scopes(checkpoint: Checkpoint, variants: Sequence[str] | None) -> Iterator[VariantMapping]:
    """Mappings with the scopes that hold a first convolution: of clones, towers, models inside a model."""
    for mapping in named(checkpoint, variants or list_variants()):
        for scope in stem_scopes(mapping, checkpoint):
            if scope != mapping.scope:
                yield msgspec.structs.replace(mapping, scope=scope)


def _without_classes(checkpoint: Checkpoint, variants: Sequence[str] | None) -> Iterator[VariantMapping]:
    """slim's networks that end in their embedding, in any scope: feature vectors."""
    if "slim" not in NAMES.get(checkpoint.format, TENSORFLOW_NAMES):
        return
    for variant in variants or list_variants():
        mapping = load_variant(variant)
        for scope in stem_scopes(mapping, checkpoint):
            scoped = msgspec.structs.replace(mapping, scope=scope, top="optional")
            network, classes, _ = fit(scoped, checkpoint)
            if network.embedding and not classes:
                yield scoped


def other_sizes(checkpoint: Checkpoint, variants: Sequence[str] | None) -> Iterator[VariantMapping]:
    """Mappings with another multiplier, other channels of the image or another width of the embedding, in any scope."""
    published = list(named(checkpoint, list_variants()))
    for mapping in published:
        if mapping.network.multiplier != 1 or mapping.variant not in (variants or list_variants()):
            continue
        for scope in dict.fromkeys((mapping.scope, *stem_scopes(mapping, checkpoint, any_size=True))):
            for other in _in_other_sizes(msgspec.structs.replace(mapping, scope=scope), checkpoint):
                if all((other.network, other.input) != (one.network, one.input) for one in published):
                    yield other


def _in_other_sizes(mapping: VariantMapping, checkpoint: Checkpoint) -> Iterator[VariantMapping]:
    stem = _stored(first_variable(mapping), checkpoint)
    if not stem or stem[1] > MOST_CHANNELS:
        return
    every = {want.target: want for want in expected_variables(mapping, build_network(mapping), classes=0)}
    last = every.get(f"{build_network(mapping).last_conv}.weight")
    last_map, embedding = (_stored(one, checkpoint) for one in (last, every.get("conv_head.weight")))
    channels, spec, head = stem[1], mapping.input, mapping.network.head
    if channels != spec.channels:
        mean, std = spec.mean[:1] * channels, spec.std[:1] * channels
        spec = msgspec.structs.replace(spec, channels=channels, mean=mean, std=std)
    if head and embedding and followed_by(checkpoint, every["conv_head.weight"].source, head.activation):
        head = msgspec.structs.replace(head, out=embedding[0])
    for multiplier in MULTIPLIERS:
        table = msgspec.structs.replace(mapping.network, multiplier=multiplier, head=head)
        network = build_network(msgspec.structs.replace(mapping, network=table))
        if last_map and network.blocks[-1].out != last_map[1]:
            continue
        if network.stem != stem[0]:  # Keras's stays as it is
            fixed = msgspec.structs.replace(table.stem, out=stem[0], fixed=True)
            table = msgspec.structs.replace(table, stem=fixed)
        if table.last and last_map and network.last != last_map[0]:  # Keras's has six times the channels before it
            fixed_last = msgspec.structs.replace(table.last, out=last_map[0], fixed=True)
            table = msgspec.structs.replace(table, last=fixed_last)
        yield msgspec.structs.replace(mapping, network=table, input=spec)


def _stored(want: Expected | None, checkpoint: Checkpoint) -> Shape:
    """The shape of a stored convolution in PyTorch's order; empty where there is none."""
    stored = checkpoint.get(want.source) if want else None
    if want is None or stored is None or len(stored.shape) != 4:
        return ()
    return tuple(stored.shape[axis] for axis in AXES[want.axes].order)


def stem_scopes(mapping: VariantMapping, checkpoint: Checkpoint, any_size: bool = False) -> list[str]:
    """The first scopes that hold the first convolution of ``mapping``, or one of any size."""
    plain = msgspec.structs.replace(mapping, scope="", top="none")
    first = first_variable(plain)
    names = (name for name in checkpoint if name == first.source or name.endswith(f"/{first.source}"))
    fitting = (name for name in names if any_size or checkpoint[name].shape == first.shape)
    return [name.removesuffix(first.source).rstrip("/") for name in islice(fitting, MOST_SCOPES)]
