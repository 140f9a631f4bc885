"""YAML files with ``base:`` inheritance, and the line of every key."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from porter.errors import MappingError


class Document(NamedTuple):
    """Merged content, and the place of each key: ``$.network.blocks[3].kernel`` -> ``file:line``."""

    content: dict[str, Any]
    lines: dict[str, str]

    def where(self, path: str) -> str:
        """``file:line`` of ``path`` or of the closest key above it."""
        while path not in self.lines and path != "$":
            path = path[: max(path.rfind("."), path.rfind("["))]
        return self.lines[path]


Find = Callable[[str, Path], Path | Document]  # a file, or one that has been read

ADDED = "ignore"  # this list is added to the base's
MAX_BYTES = 1 << 20  # of one file; our largest has 11 KB
MAX_NODES, MAX_DEPTH = 20_000, 24  # of all files together, each use of an alias counted; ours have up to 3,000 and 8
MAX_TEXT = 1000  # characters of a value, or of all keys above one
MAX_BASES = 32  # files read for one mapping


class _Reading:
    """The files and values read so far for one mapping, with their limits."""

    def __init__(self, find: Find) -> None:
        self.find, self.files, self.nodes = find, 0, 0

    def base(self, name: str, path: Path) -> Path | Document:
        self.files += 1
        if self.files > MAX_BASES:
            raise MappingError(f"{path}: more than {MAX_BASES} files through `base:`")
        return self.find(name, path)

    def text(self, path: Path) -> str:
        if not path.is_file():
            raise MappingError(f"{path}: {'is no file' if path.exists() else 'No such file or directory'}")
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise MappingError(f"{path}: longer than {MAX_BYTES} bytes; no mapping file is")
            return data.decode()
        except OSError as error:
            raise MappingError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise MappingError(f"{path}: not readable as YAML: {error}") from error

    def node(self, place: str, depth: int, at: str, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise MappingError(f"{place}: more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}")
        if max(len(at), len(node.value) if isinstance(node, yaml.ScalarNode) else 0) > MAX_TEXT:
            raise MappingError(f"{place}: a text of more than {MAX_TEXT} characters; no name is that long")


def read_yaml(path: Path, find: Find) -> Document:
    """Read ``path``. Its ``base:``, found by ``find(name, path)``, are overlaid in order, then ``path``.

    Raises MappingError with file and line.
    """
    return _read(path, _Reading(find), ())


def _read(path: Path, reading: _Reading, seen: tuple[Path, ...]) -> Document:
    if path in seen:
        raise MappingError(f"{path}: its base leads back to itself")
    text = reading.text(path)
    try:
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        # A value of two characters takes a kilobyte once it is composed. A shorter text cannot hold as many
        if len(text) > MAX_NODES and sum(1 for _ in islice(yaml.parse(text, kind), 2 * MAX_NODES)) == 2 * MAX_NODES:
            raise MappingError(f"{path}: more than {MAX_NODES} values")
        loader = kind(text)
        root = loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MappingError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise MappingError(f"{path}:1: a mapping file is a YAML mapping (key: value)")
    lines: dict[str, str] = {}

    def value(node: yaml.Node, at: str, depth: int = 0) -> Any:
        lines[at] = place = f"{path}:{node.start_mark.line + 1}"
        reading.node(place, depth, at, node)
        if isinstance(node, yaml.SequenceNode):
            return [value(child, f"{at}[{i}]", depth + 1) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            try:
                return loader.construct_object(node)
            except (yaml.YAMLError, ValueError, OverflowError) as error:
                raise MappingError(f"{place}: {' '.join(str(error).split())}") from error
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            key, line = key_node.value, f"{path}:{key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise MappingError(f"{line}: a key is a plain name, not a list or mapping")
            if key in result:
                raise MappingError(f"{line}: key {key!r} stands twice")
            result[key] = value(child, f"{at}.{key}", depth + 1)
        return result

    content = value(root, "$")
    bases = content.pop("base", [])
    document = Document({}, {})
    for base in bases if isinstance(bases, list) else [bases]:
        found = reading.base(str(base), path)
        document = overlay(document, _read(found, reading, (*seen, path)) if isinstance(found, Path) else found)
    return overlay(document, Document(content, lines))


def overlay(below: Document, above: Document) -> Document:
    """``above`` over ``below``: mappings merge key by key, ``ignore`` lists are joined, other values are replaced."""
    content, lines = _merge(below.content, above.content), above.lines
    first, second = (document.content.get(ADDED) for document in (below, above))
    if isinstance(first, list) and isinstance(second, list):
        content[ADDED] = first + second
        entry = re.compile(rf"(?<=^\$\.{ADDED}\[)\d+")
        lines = {entry.sub(lambda found: str(int(found[0]) + len(first)), key): at for key, at in lines.items()}
    return Document(content, below.lines | lines)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
