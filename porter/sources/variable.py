"""One variable of a checkpoint: shape and dtype known, values read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import msgspec

from porter.errors import CheckpointError
from porter.sources import dtypes
from porter.sources.stored_graph import StoredGraph

if TYPE_CHECKING:
    import numpy as np


def read_file(path: Path) -> bytes:
    """The content of ``path``. Raises CheckpointError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


class FileView:
    """``view[a:b]`` and ``view[i]`` of the file ``path``, as for ``bytes``. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = _size(path)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, at: slice) -> bytes: ...

    @overload
    def __getitem__(self, at: int) -> int: ...

    def __getitem__(self, at: slice | int) -> bytes | int:
        if isinstance(at, int):
            return self[at : at + 1][0]
        start, stop, _ = at.indices(self.size)
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(max(0, stop - start))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if len(data) != max(0, stop - start):
            raise CheckpointError(f"{self.path}: has become shorter while it was read; try again")
        return data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


class Variable(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A TensorFlow variable in a file.

    ``name``: plain variable name. ``stored_as``: name in the file, which differs for an average
    (``.../ExponentialMovingAverage``). ``dtype``: TensorFlow's name, e.g. ``float32``. ``fused``: the activation that a
    .tflite fused into the operator that uses it, e.g. ``relu6``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_as: str
    file: str
    load: Callable[[], np.ndarray]
    fused: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes; 0 if it is not known without reading (strings)."""
        return math.prod(self.shape) * dtypes.ITEM_SIZES.get(self.dtype, 0)

    def read(self) -> np.ndarray:
        """Read the values: native byte order, TensorFlow's layout, checksum verified.

        The array may be read-only. Raises CheckpointError on damaged data.
        """
        return self.load()


class Contents(NamedTuple):
    """What a reader found: variables by name, their files, and names set aside with the reason.

    ``prefetch`` fetches the values of remote variables, by stored name, in advance. ``graph`` reads the operations that
    the file states; None where it states none. ``rounds``: what the file's own runtime rounds and its weights do not
    show.
    """

    variables: dict[str, Variable]
    files: list[Path]
    set_aside: dict[str, str] = {}  # noqa: RUF012 - never changed
    prefetch: Callable[[Iterable[str]], None] | None = None
    graph: Callable[[], StoredGraph] | None = None
    rounds: str = ""
