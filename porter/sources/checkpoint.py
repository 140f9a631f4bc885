"""One interface for every source: a mapping from variable name to lazily read variable."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import msgspec

from porter.errors import CheckpointError
from porter.sources.archive import unpack
from porter.sources.bounds import Budget, check_total
from porter.sources.bundle import read_bundle
from porter.sources.bundle_graph import saved_model_of
from porter.sources.locate import Source, locate, step_of
from porter.sources.remote import is_url, mirror
from porter.sources.stored_graph import StoredGraph
from porter.sources.variable import Contents, Variable
from porter.sources.weights import AVERAGE_SUFFIX, RAW_SET_ASIDE, Weights, select_weights
from porter.text import printable

Read = TypeVar("Read")


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Variable]):
    """The variables of one checkpoint by plain name.

    ``given``: the path as typed. ``path`` and ``format``: what was found there; see porter.sources.locate.
    ``averaged``: True if plain names hold moving averages, as in a released ``ema/`` folder. ``choice``: the weights
    asked for. ``set_aside``: names in the file that are not offered, each with its reason. ``remote``: True if only the
    bytes asked for are fetched. ``rounds``: what the file's own runtime rounds besides, in words.
    """

    given: str
    path: Path
    format: str
    files: list[Path] = field(repr=False)
    variables: Mapping[str, Variable] = field(repr=False)
    set_aside: Mapping[str, str] = field(repr=False)
    averaged: bool
    choice: Weights = "auto"
    remote: bool = False
    fetch_values: Callable[[Iterable[str]], None] | None = field(default=None, repr=False)
    temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    read_graph: Callable[[], StoredGraph] | None = field(default=None, repr=False)
    rounds: str = ""

    @cached_property
    def graph(self) -> StoredGraph | None:
        """The operations that the file states, None where it states none. Raises CheckpointError."""
        return self.read_graph() if self.read_graph else None

    @property
    def saved_model(self) -> Path | None:
        """The ``saved_model.pb`` whose variables these are, where it is here."""
        return saved_model_of(self.path) if self.format == "bundle" and not self.remote else None

    def __getitem__(self, name: str) -> Variable:
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def values(self) -> ValuesView[Variable]:
        """The variables. (The inherited view would look up each name again.)"""
        return self.variables.values()

    def prefetch(self, names: Iterable[str]) -> None:
        """Announce which variables will be read, so that a remote store gets few requests."""
        if self.fetch_values:
            self.fetch_values(self.variables[name].stored_as for name in names)

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        averages = sum(variable.stored_as.endswith(AVERAGE_SUFFIX) for variable in self.values())
        if averages:
            return f"moving averages ({averages} variables named {AVERAGE_SUFFIX[1:]})"
        if self.of_optimizer:
            return f"moving averages ({self.of_optimizer} variables of Keras's optimizer)"
        return "moving averages (ema/ folder, plain names)" if self.averaged else self.rounds or "as stored"

    @property
    def of_optimizer(self) -> int:
        """The number of moving averages that stand for raw weights."""
        return sum(reason == RAW_SET_ASIDE for reason in self.set_aside.values())

    @property
    def place(self) -> str:
        """Where the variables lie, for messages: below the archive or URL given, not in its temporary copy."""
        if self.temporary is None:
            return str(self.path)
        within, given = self.path.relative_to(self.temporary.name), self.given.rstrip("/")
        if given.endswith(within.parts[0]):
            return given.removesuffix(within.parts[0]) + str(within)
        return f"{given.rpartition('/')[0]}/{within}"  # of a SavedModel, whose .pb was given

    @property
    def step(self) -> int | None:
        """The training step in the file name, if it has one."""
        return step_of(self.path)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by file name."""
        return {printable(path.name): sha256(path) for path in self.files}


def open_checkpoint(path: str | os.PathLike[str], weights: Weights = "auto", checksums: bool = True) -> Checkpoint:
    """Open TensorFlow weights without reading them.

    Args:
        path: A V2 or V1 checkpoint (prefix, file or folder), a SavedModel, a Keras file, a ``.tflite``, a released
            tarball or its folder, a frozen ``.pb``, a zip or tarball of any of them, or the URL of any of them.
        weights: ``ema`` or ``raw`` where both exist; ``auto`` prefers the averages, unless a SavedModel's graph has the
            raw weights.
        checksums: Check the tensors of a V2 checkpoint.

    Returns:
        A mapping of plain variable names to variables, whose values are read on demand.

    Raises:
        CheckpointError: Names the file and what to do.

    Example:
        >>> checkpoint = porter.open_checkpoint(source)
        >>> checkpoint["MobilenetV3/Conv/weights"].shape
        (3, 3, 3, 16)
        >>> checkpoint["MobilenetV3/Conv/weights"].read().dtype
        dtype('float32')
    """
    given, here = str(path), Path(path)
    copy = ""  # where a temporary copy of it lies, if there is one
    budget, fetch, temporary = Budget(given), None, None
    try:
        if is_url(path):
            here, temporary, fetch, fetch_meta = mirror(given, budget)
            copy = str(here)
        source = locate(here, weights)
        if source.kind == "archive":
            temporary, fetch = unpack(source.path, budget), None  # all of it has been fetched
            copy = str(Path(temporary.name) / source.path.name)
            source = locate(Path(copy), weights)
        if fetch and source.kind == "bundle":
            fetch_meta(source.path)
        contents = read_bundle(source.path, fetch, checksums) if source.kind == "bundle" else _read(source)
        if source.kind != "bundle":  # its shards may be stand-ins, and its reader checks them
            check_total(contents.variables.values(), contents.files, str(source.path))
        serves_raw = weights == "auto" and source.kind == "bundle" and _serves_raw(source.path, contents)
    except CheckpointError as error:
        if not copy:
            raise
        raise error.renamed(copy, given) from error
    averaged = source.kind == "bundle" and source.path.parent.name == "ema"
    variables, read_graph = contents.variables, contents.graph
    if temporary:
        naming = partial(_naming, temporary, copy, given)
        read_graph = naming(read_graph) if read_graph else None
        variables = {
            name: msgspec.structs.replace(one, load=naming(one.load), file=one.file.replace(copy, given))
            for name, one in variables.items()
        }
    chosen, set_aside = select_weights(variables, "raw" if serves_raw else weights, given, averaged)
    return Checkpoint(
        given=given,
        path=source.path,
        format=source.kind,
        files=contents.files,
        variables=chosen,
        set_aside=contents.set_aside | set_aside,
        averaged=averaged,
        choice=weights,
        remote=fetch is not None,
        fetch_values=contents.prefetch,
        temporary=temporary,
        rounds=contents.rounds,
        read_graph=read_graph,
    )


def _serves_raw(prefix: Path, contents: Contents) -> bool:
    """Whether these are a SavedModel's variables, and its graph computes with raw weights beside their averages."""
    averages = {name for name in contents.variables if name.endswith(AVERAGE_SUFFIX)}
    if not averages or contents.graph is None or saved_model_of(prefix) is None:
        return False
    return all(averages.isdisjoint(one.weights.values()) for one in contents.graph().operations.values())


def _naming(folder: object, copy: str, given: str, read: Callable[[], Read]) -> Callable[[], Read]:
    """``read``, which keeps the temporary ``folder`` that it reads from, and names what was ``given`` in errors.

    A Checkpoint may be dropped before its variables.
    """

    def named() -> Read:
        assert folder
        try:
            return read()
        except CheckpointError as error:
            raise error.renamed(copy, given) from error

    return named


def _read(source: Source) -> Contents:
    """Call ``read_<kind>`` of the module ``<kind>``, which is imported only when needed."""
    module = import_module(f"porter.sources.{source.kind}")
    contents: Contents = getattr(module, f"read_{source.kind}")(source.path)
    return contents


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
