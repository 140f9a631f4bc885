"""Finding the MobileNetV3 inside a larger model: below a scope, by Keras's names, or under other names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from porter.errors import MappingError, Option
from porter.mapping.by_graph import by_graph
from porter.mapping.files import list_backbones, list_variants, load_variant
from porter.mapping.identify import Match, matched, named, other_sizes, stem_scopes
from porter.mapping.matching import choose, find_scope
from porter.mapping.rules import expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.network import build_network
from porter.sources import Checkpoint
from porter.sources.dtypes import FLOATS
from porter.sources.object_graph import OBJECT_GRAPH

# What variables are named in what is no MobileNetV3, or wrapped: slim's, keras.applications', tfmot's layers
OTHERS = tuple(
    (re.compile(names), what)
    for names, what in (
        (
            r"(^|/)(quant_|prune_low_magnitude_)",
            "its layers are in tfmot's wrappers; strip pruning (tfmot.sparsity.keras.strip_pruning) and save again, or "
            "convert a quantised model to .tflite, and port that",
        ),
        (r"(^|/)MobilenetV2/", "a MobileNetV2 of TF/Models, not a MobileNetV3"),
        (r"(^|/)MobilenetV1/", "a MobileNetV1 of TF/Models, not a MobileNetV3"),
        (r"(^|/)block_\d+_(expand|depthwise|project)(_BN)?/", "a MobileNetV2 of Keras, not a MobileNetV3"),
        (r"(^|/)conv_(dw|pw)_\d+(_bn)?/", "a MobileNetV1 of Keras, not a MobileNetV3"),
        (
            r"(^|/)block\d[a-z]_(expand|dwconv|se|project)|(^|/)efficientnet[-_/]",
            "an EfficientNet, not a MobileNetV3",
        ),
    )
)
ONE_OF_TWO = "name one as the `scope` of a mapping file with `top: none`"


def find_backbone(checkpoint: Checkpoint, variants: Sequence[str] | None = None) -> Match:
    """The backbone of ``variants`` (None: all) that fits best.

    Raises MappingError if there are backbones in two places, as either may be meant.
    """
    candidates = sorted(_candidates(checkpoint, variants), key=lambda one: -one.fitting / one.expected)
    scopes = sorted({one.mapping.scope for one in candidates if one.exact})
    if len(scopes) > 1:
        raise MappingError(
            f"{checkpoint.given}: holds {len(scopes)} backbones, below {', '.join(scopes)}; {ONE_OF_TWO}"
        )
    if candidates:
        return candidates[0]
    return matched(as_backbone(load_variant((variants or list_variants())[0])), checkpoint)


def as_backbone(mapping: VariantMapping, scope: str | None = None) -> VariantMapping:
    """``mapping`` without head and classifier; its variables are below ``scope``, or in their old scope if None."""
    return msgspec.structs.replace(mapping, top="none", scope=mapping.scope if scope is None else scope)


def by_other_names(checkpoint: Checkpoint, variants: Sequence[str] | None = None) -> VariantMapping | None:
    """A backbone whose variables have unknown names, if the graph, or shapes and names, identify it; else None.

    Raises MappingError where the graph holds two.
    """
    found = list(by_graph(checkpoint, variants))
    if len(found) > 1:
        stems = " and ".join(next(iter(one.variables.values())) for one in found)
        raise MappingError(f"{checkpoint.given}: holds {len(found)} backbones, which begin with {stems}; {ONE_OF_TWO}")
    if found:
        return as_backbone(found[0], scope="")
    floats = {name: variable for name, variable in checkpoint.items() if variable.dtype in FLOATS}
    for variant in variants or (*list_variants(), *list_backbones()):
        plain = as_backbone(load_variant(variant), scope="")
        expected = expected_variables(plain, build_network(plain), classes=0)
        expected = [want for want in expected if "Conv_2" not in want.source]
        scope = find_scope(expected, floats)
        choices = choose(expected, floats, scope)
        if all(choice.certain for choice in choices):
            renamed = {choice.wanted.source: str(choice.name) for choice in choices}
            return msgspec.structs.replace(plain, variables=renamed)
    return None


def hint(checkpoint: Checkpoint) -> MappingError | None:
    """The error for a larger model that holds a backbone, or for another network that is known by its names."""
    found = find_backbone(checkpoint)
    if not found.exact:
        known = next((what for names, what in OTHERS if any(names.search(name) for name in checkpoint)), None)
        return MappingError(f"{checkpoint.given}: {known}") if known else None
    whole = ""
    if checkpoint.graph is None and not checkpoint.remote and OBJECT_GRAPH in checkpoint.set_aside.values():
        whole = f"to port it whole, put what its model.to_json() gives into {checkpoint.path.name}.json beside it; "
    return MappingError(
        f"{checkpoint.given}: not a MobileNetV3 classifier, but holds a {found.mapping.variant} backbone: {whole}"
        f"to port {found.expected} of its {len(checkpoint)} variables use",
        option=Option("backbone"),
    )


def _candidates(checkpoint: Checkpoint, variants: Sequence[str] | None) -> Iterator[Match]:
    found = False
    for mapping in named(checkpoint, variants or (*list_variants(), *list_backbones())):
        for scope in stem_scopes(mapping, checkpoint):
            candidate = matched(as_backbone(mapping, scope), checkpoint)
            found = found or candidate.exact
            yield candidate
    if not found:
        for mapping in other_sizes(checkpoint, variants):
            yield matched(as_backbone(mapping), checkpoint)
