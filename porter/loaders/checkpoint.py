"""One interface for every source: a mapping from variable name to lazily read variable."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from porter.loaders.archive import unpack
from porter.loaders.bundle import read_bundle
from porter.loaders.graphdef import read_graphdef
from porter.loaders.locate import locate, step_of
from porter.loaders.v1 import read_v1
from porter.loaders.variable import Variable
from porter.loaders.weights import SUFFIX, Weights, select_weights

if TYPE_CHECKING:
    import numpy as np

READERS = {"bundle": read_bundle, "graphdef": read_graphdef, "v1": read_v1}


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Variable]):
    """The variables of one checkpoint by plain name.

    ``given`` is the path as typed; ``path`` what was found there, in ``format``: see porter.loaders.locate.
    ``averaged`` tells that the plain names hold moving averages, as in a released ``ema/`` folder.
    ``set_aside`` names what lies in the file but is not offered, each with its reason.
    """

    given: Path
    path: Path
    format: str
    files: list[Path] = field(repr=False)
    variables: Mapping[str, Variable] = field(repr=False)
    set_aside: Mapping[str, str] = field(repr=False)
    averaged: bool
    unpacked: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Variable:
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        averages = sum(variable.stored_as.endswith(SUFFIX) for variable in self.values())
        if averages:
            return f"moving averages ({averages} variables named {SUFFIX[1:]})"
        return "moving averages (ema/ folder, plain names)" if self.averaged else "as stored"

    @property
    def step(self) -> int | None:
        """The training step in the file name, if it has one."""
        return step_of(self.path)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by file name."""
        return {path.name: sha256(path) for path in self.files}


def open_checkpoint(path: str | os.PathLike[str], weights: Weights = "auto") -> Checkpoint:
    """Open the TensorFlow weights at ``path`` without reading them.

    ``path``: a V2 or V1 checkpoint (prefix, file or folder), a SavedModel, a released tarball or its folder,
    or a frozen ``.pb``. ``weights``: ``ema`` or ``raw`` where both exist; ``auto`` prefers the averages.
    Raises CheckpointError naming the file and what to do.
    """
    given = Path(path)
    source = locate(given, weights)
    unpacked = unpack(given) if source.kind == "archive" else None
    if unpacked:
        source = locate(Path(unpacked.name) / given.name, weights)
    contents = READERS[source.kind](source.path)
    averaged = source.kind == "bundle" and source.path.parent.name == "ema"
    variables = contents.variables
    if unpacked:
        variables = {name: _holding(variable, unpacked) for name, variable in variables.items()}
    chosen, set_aside = select_weights(variables, weights, str(given), averaged)
    return Checkpoint(
        given, source.path, source.kind, contents.files, chosen, contents.set_aside | set_aside, averaged, unpacked
    )


def _holding(variable: Variable, folder: tempfile.TemporaryDirectory[str]) -> Variable:
    """``variable``, which keeps the unpacked ``folder`` it reads from; a Checkpoint may be dropped before it."""

    def load() -> np.ndarray:
        assert folder
        return variable.load()

    return replace(variable, load=load)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
