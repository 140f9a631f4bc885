"""Finding and loading mapping files: the built-in variants' and a user's own."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from porter.errors import MappingError
from porter.mapping.rules import expected_variables, module_outputs
from porter.mapping.schema import SECTIONS, VariantMapping
from porter.mapping.yaml_file import Document, overlay, read_yaml
from porter.network.network import HEADS, build_network
from porter.network.nodes import check_needs

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # it becomes a file name
Names = Literal["slim", "keras", "keras2", "keras_unnamed", "tflite", "tfjs", "garden"]


@functools.cache
def mappings_folder() -> Path:
    """The installed ``mappings/`` (setup.cfg installs it as the data package ``porter.variants``)."""
    spec = importlib.util.find_spec("porter.variants")
    if spec is None or not spec.submodule_search_locations:
        raise MappingError("the mapping files are not installed; install mnv3-port again")
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def load_variant(variant: str, names: Names = "slim") -> VariantMapping:
    """The mapping of a variant, ours or timm's name of it, with variables named as in ``names``.

    Raises MappingError for an unknown variant.
    """
    name = variant_named(variant)
    if name is None:
        kinds = {"classifiers": list_variants(), "with a head": list_with_head(), "backbones": list_backbones()}
        raise MappingError(
            f"unknown variant {variant[:60]!r}{did_you_mean(variant, list_networks())}; there are",
            [f"{kind}: {', '.join(names)}" for kind, names in kinds.items()],
        )
    document = _document(f"{name}.yaml")
    if names != "slim":
        document = overlay(document, _document(f"{names}.yaml"))
    mapping = _convert_document(document)
    return msgspec.structs.replace(mapping, top="required") if mapping.head and mapping.top != "none" else mapping


@functools.cache
def _document(name: str) -> Document:
    return read_yaml(mappings_folder() / name, _find_base)


@functools.cache
def list_variants() -> tuple[str, ...]:
    """The built-in classifiers: the mapping files that name one.

    Example:
        >>> porter.list_variants()[-3:]
        ('small_075', 'small_100', 'small_minimal_100')
    """
    others = (*list_backbones(), *list_with_head())
    return tuple(name for name in _variants() if name not in others)


@functools.cache
def list_backbones() -> tuple[str, ...]:
    """The built-in networks without a classifier: those of segmentation and detection models."""
    return tuple(name for name in _variants() if _document(f"{name}.yaml").content["top"] == "none")


@functools.cache
def list_with_head(*keys: str) -> tuple[str, ...]:
    """The built-in networks with one of the heads ``keys`` (e.g. ``segmentation``), or with any if empty."""
    wanted = keys or tuple(head.KEY for head in HEADS)
    return tuple(name for name in _variants() if any(_document(f"{name}.yaml").content.get(key) for key in wanted))


@functools.cache
def list_with_rules_of_head(names: Names) -> tuple[str, ...]:
    """The built-in networks with a head, as far as ``names`` has names for its variables."""
    rules = _document(f"{names}.yaml").content.get("rules", {})
    return list_with_head(*keys) if (keys := [one.KEY for one in HEADS if rules.keys() >= {*one.SECTIONS}]) else ()


def list_networks() -> tuple[str, ...]:
    """Classifiers, segmenters, detectors and backbones."""
    return (*list_variants(), *list_with_head(), *list_backbones())


@functools.cache
def _variants() -> tuple[str, ...]:
    files = sorted(mappings_folder().glob("*.yaml"))
    return tuple(path.stem for path in files if re.search("^variant:", path.read_text(), re.MULTILINE))


def variant_named(name: str) -> str | None:
    """The variant or backbone with this name, ours or timm's; None if there is none."""
    return name if name in list_networks() else _timm_names().get(name)


@functools.cache
def _timm_names() -> dict[str, str]:
    return {timm: variant for variant in list_variants() if (timm := load_variant(variant).timm)}


def did_you_mean(name: str, among: Sequence[str]) -> str:
    """``; did you mean X?`` for the closest of ``among`` and of timm's names of them; empty where none is close."""
    from difflib import get_close_matches

    known = [*among, *(timm for timm, variant in _timm_names().items() if variant in among)]
    close = get_close_matches(name[:100], known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def load_mapping(path: Path, names: Names | None = None) -> VariantMapping:
    """Load and check a mapping file. Its ``base`` may be a file beside it or an installed one.

    With ``names``, only the network is the file's. Raises MappingError with file, line and key.
    """
    document = read_yaml(path, _find_base)
    return _convert_document(overlay(document, _document(f"{names}.yaml")) if names else document)


def _convert_document(document: Document) -> VariantMapping:
    try:
        mapping = msgspec.convert(document.content, VariantMapping)
    except msgspec.ValidationError as error:
        raise MappingError(_with_line(str(error), document)) from error
    _check(mapping, document)
    return mapping


def standalone(mapping: VariantMapping) -> bytes:
    """``mapping`` as a file that needs no base."""
    import yaml

    return yaml.safe_dump(msgspec.to_builtins(mapping), sort_keys=False).encode()


def mapping_digest(mapping: VariantMapping) -> str:
    """SHA-256 of the mapping's content, bases merged in; comments and layout of the file do not count."""
    return hashlib.sha256(msgspec.json.encode(mapping, order="deterministic")).hexdigest()


def _find_base(name: str, beside: Path) -> Path | Document:
    if (own := beside.parent / name).is_file() and beside.parent != mappings_folder():
        return own
    if Path(name).name == name and (mappings_folder() / name).is_file():
        return _document(name)
    raise MappingError(f"{beside}: base {name!r} is neither beside it nor among the installed mappings")


def _with_line(message: str, document: Document) -> str:
    """msgspec's ``what - at `$.path``` rewritten as ``file:line: path: what``."""
    what, _, at = message.partition(" - at ")
    path = at.strip("`") or "$"
    unknown = re.search(r"unknown field `(\w+)`", what)
    line = document.where(f"{path}.{unknown[1]}" if unknown else path)
    return f"{line}: {path.removeprefix('$').removeprefix('.') or 'top level'}: {what}"


def _check(mapping: VariantMapping, document: Document) -> None:
    """Checks beyond types: names are plain, the table makes a network, and the rules expand over it."""
    for field, name in (("variant", mapping.variant), ("timm", mapping.timm)):
        if name is not None and not PLAIN_NAME.fullmatch(name):
            at = document.where(f"$.{field}")
            raise MappingError(f"{at}: {field}: {name[:60]!r} is not a plain name (letters, digits, _ . -)")
    try:
        for section in mapping.rules:
            if section not in (*SECTIONS, *(name for head in HEADS for name in head.SECTIONS)):
                raise ValueError(f"rules.{section[:60]}: is no section of rules")
        if "squeeze_excite" in mapping.rules.get("squeeze_excite", []):
            raise ValueError("rules.squeeze_excite: stands for itself")
        network = build_network(mapping)
        check_needs(network, mapping.input)
        expected_variables(mapping, network, classes=1)
        module_outputs(mapping, network, classes=1)
    except (ValueError, KeyError, IndexError) as error:
        text = f"unknown placeholder {error}" if isinstance(error, KeyError) else str(error)
        key = re.match(r"[\w.\[\]]+(?=: )", text)
        raise MappingError(f"{document.where(f'$.{key[0]}' if key else '$')}: {text}") from error
