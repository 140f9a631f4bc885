"""YAML files with ``base:`` inheritance that remember the line of every key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from porter.errors import MappingError

Find = Callable[[str, Path], Path]


class Document(NamedTuple):
    """Merged content, and where each key stands: ``$.network.blocks[3].kernel`` -> ``file:line``."""

    content: dict[str, Any]
    lines: dict[str, str]

    def where(self, path: str) -> str:
        """``file:line`` of ``path`` or of the closest key above it."""
        while path not in self.lines and path != "$":
            path = path[: max(path.rfind("."), path.rfind("["))]
        return self.lines[path]


def read_yaml(path: Path, find: Find) -> Document:
    """Read ``path``; the files its ``base:`` names, found by ``find(name, path)``, come below it in their order.

    Raises MappingError with file and line.
    """
    return _read(path, find, ())


def _read(path: Path, find: Find, seen: tuple[Path, ...]) -> Document:
    if path in seen:
        raise MappingError(f"{path}: its base leads back to itself")
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text("utf-8"))
        node = loader.get_single_node()
    except OSError as error:
        raise MappingError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise MappingError(f"{path}:1: a mapping file is a YAML mapping (key: value)")
    lines: dict[str, str] = {}
    content = _value(loader, node, "$", path, lines)
    bases = content.pop("base", [])
    document = Document({}, {})
    for base in bases if isinstance(bases, list) else [bases]:
        document = overlay(document, _read(find(str(base), path), find, (*seen, path)))
    return overlay(document, Document(content, lines))


def overlay(below: Document, above: Document) -> Document:
    """``above`` over ``below``: mappings merge key by key, everything else is replaced."""
    return Document(_merge(below.content, above.content), below.lines | above.lines)


def _value(loader: Any, node: yaml.Node, at: str, path: Path, lines: dict[str, str]) -> Any:
    lines[at] = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, f"{at}[{i}]", path, lines) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        key = key_node.value
        if key in result:
            raise MappingError(f"{path}:{key_node.start_mark.line + 1}: key {key!r} stands twice")
        result[key] = _value(loader, child, f"{at}.{key}", path, lines)
    return result


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
