"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from porter.errors import PorterError


def refuse_existing(path: Path, force: bool) -> None:
    """Raise PorterError where ``path`` cannot be the output: it exists (without ``force``) or is a folder."""
    if path.is_dir():
        raise PorterError(f"{path}: is a folder; name the output file")
    if path.exists() and not force:
        raise PorterError(f"{path}: exists already; choose another output or use --force")


@contextmanager
def atomic_write(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    On any exception, KeyboardInterrupt included, the temporary file goes and an old ``path`` stays as
    it was. Raises PorterError when the output exists (without ``force``) or cannot be written.
    """
    refuse_existing(path, force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise PorterError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # renamed, or never made
            temporary.unlink()


def write_bytes(path: Path, data: bytes, force: bool = False) -> None:
    """``atomic_write`` of data that is there already."""
    with atomic_write(path, force) as file:
        file.write(data)
