"""Atomic writes: a file or folder is written completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from porter.errors import Option, PorterError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def refuse_existing(path: Path, force: bool) -> None:
    """Raise PorterError where ``path`` cannot be the output: it exists (without ``force``) or is a folder."""
    if path.is_dir():
        raise PorterError(f"{path}: is a folder; name the output file")
    if path.exists() and not force:
        raise PorterError(f"{path}: exists already; choose another output or use", option=Option("force"))


@contextmanager
def atomic_write(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    On any exception, KeyboardInterrupt included, the temporary file goes and an old ``path`` stays as
    it was. What replaces a file has its permissions. Raises PorterError when the output exists (without ``force``, even
    if it has come to exist meanwhile) or cannot be written.
    """
    refuse_existing(path, force)
    sweep(path)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
        else:
            _rename_new(temporary, path)
    except OSError as error:
        raise PorterError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # renamed, or never made
            temporary.unlink()


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename to ``path``, which must not exist: a link fails where a rename would overwrite."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise PorterError(f"{path}: exists already; choose another output or use", option=Option("force")) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        temporary.rename(path)  # a file system without links


def write_bytes(path: Path, data: bytes, force: bool = False) -> None:
    """Write ``data`` with ``atomic_write``."""
    with atomic_write(path, force) as file:
        file.write(data)


def temporary_beside(path: Path) -> Path:
    """An unused name beside ``path``. ``sweep`` removes it after this process has ended."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(path: Path, endings: str = "") -> None:
    """Remove temporary files of killed runs beside ``path``, or those whose names end in ``endings`` (a pattern)."""
    ours = re.compile(re.escape(f".{path.name}") + endings + r"\.(\d+)-[0-9a-f]{8}\.tmp")
    with suppress(OSError):
        for left in path.parent.iterdir():
            found = ours.fullmatch(left.name)
            if found and not _alive(int(found[1])):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def put_folder(new: Path, place: Path) -> None:
    """Rename the folder ``new`` to ``place``; a folder that is there goes, and there is one of them at every moment.

    Where the system cannot exchange two folders, there is a moment with none; ``new`` is whole beside it then.
    """
    if not place.exists():
        new.rename(place)
        return
    if not _exchange(new, place):
        old = temporary_beside(place)
        place.rename(old)
        new.rename(place)
        new = old
    shutil.rmtree(new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux's renameat2); False where the system cannot."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
