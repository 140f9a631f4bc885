"""A file as a sequence of bytes. Only the parts that are accessed are read.

Not mapped: a file that shrinks under a mapping kills the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import overload

from porter.errors import CheckpointError


class FileView:
    """``view[a:b]`` and ``view[i]`` of the file ``path``, as of ``bytes``. Raises CheckpointError."""

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
