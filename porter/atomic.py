"""Atomic writes: a file or folder is written completely or not at all.

The rule for every output: a link is followed and kept, a regular file is replaced, and a stream (a device, a FIFO, an
open descriptor such as ``/dev/stdout``) is written through.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from porter.errors import Option, PorterError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|(\d+)))/fd/(\d+)")
MAX_LINKS = 40  # as Linux


def refuse_existing(path: Path, force: bool) -> None:
    """Raise PorterError if ``path`` cannot be the output: it exists (without ``force``), is a folder or a socket.

    A stream is never overwritten and needs no ``force``.
    """
    if is_stream(path):
        return
    if path.is_dir():
        raise PorterError(f"{path}: is a folder; name the output file")
    if path.is_socket():
        raise PorterError(f"{path}: is a socket; name a file")
    if path.exists() and not force:
        raise PorterError(f"{path}: exists already; choose another output or use", option=Option("force"))


def check_output(path: Path, force: bool) -> None:
    """Raise PorterError if the file ``path`` cannot be written. Call it before any work, which would be lost.

    Refuses what ``refuse_existing`` refuses, and a folder that is missing or cannot be written to.
    """
    refuse_existing(path, force)
    if (number := descriptor_of(path)) is not None:
        try:
            os.fstat(number)
        except OSError as error:
            raise PorterError(f"{path}: cannot be written: {error.strerror}") from error
    elif not is_stream(path):
        _check_inside(place_of(path).parent)
    elif not os.access(path, os.W_OK):
        raise PorterError(f"{path}: is not writable; name another output")


def check_folder(path: Path) -> None:
    """Raise PorterError if files cannot be written into the folder ``path``, which may not exist yet."""
    above = Path(os.path.realpath(path)).parents
    _check_inside(path if path.exists() else next(folder for folder in above if folder.exists()))


def make_folder(path: Path) -> None:
    """Make the folder ``path``, or its link's target, and its parents. Raises PorterError."""
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PorterError(f"{path}: cannot be made: {error.strerror}") from error


def _check_inside(folder: Path) -> None:
    if not folder.exists():
        raise PorterError(f"{folder}: no such folder; make it first")
    if not folder.is_dir():
        raise PorterError(f"{folder}: is a file; name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PorterError(f"{folder}: is not writable; name another folder")


def descriptor_of(path: Path) -> int | None:
    """The number of this process's open file that ``path`` names or, like ``/dev/stdout``, links to; else None."""
    at = path if path.is_absolute() else Path.cwd() / path
    for _ in range(MAX_LINKS):
        if str(at) in STANDARD:
            return STANDARD[str(at)]
        found = DESCRIPTOR.fullmatch(str(at))
        if found and found[1] in (None, str(os.getpid())):
            return int(found[2])
        if not at.is_symlink():
            return None
        at = at.parent / at.readlink()
    raise PorterError(f"{path}: its links lead in a circle; name a file")


def is_stream(path: Path) -> bool:
    """Whether ``path`` is written through: a device, a FIFO or an open descriptor."""
    return descriptor_of(path) is not None or path.is_fifo() or path.is_char_device() or path.is_block_device()


def place_of(path: Path) -> Path:
    """The path that the output ``path`` replaces: itself, or the target of its links."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_through(path: Path, data: BinaryIO) -> None:
    """Copy ``data`` into ``path``, a stream. Raises PorterError, and BrokenPipeError if its reader has ended."""
    sys.stdout.flush()  # earlier prints come first
    number = descriptor_of(path)
    try:
        # A descriptor is not reopened: a regular file would be written from its start
        opened = os.open(path, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
        with os.fdopen(opened, "wb") as file:
            shutil.copyfileobj(data, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PorterError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    On any exception, including KeyboardInterrupt, the temporary file is removed and an old ``path`` stays unchanged. A
    new file keeps the permissions of the file that it replaces. A stream gets everything when the block ends well.
    Raises PorterError if the output exists (without ``force``, even if it was created meanwhile) or cannot be written.
    """
    check_output(path, force)
    if is_stream(path):
        whole = io.BytesIO()
        yield whole
        whole.seek(0)
        write_through(path, whole)
        return
    place = place_of(path)
    sweep(place)
    temporary = temporary_beside(place)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(place.stat().st_mode))
            temporary.replace(place)
        else:
            _rename_new(temporary, place)
    except OSError as error:
        raise PorterError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):  # renamed, or never made
            temporary.unlink()


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename to ``path``, which must not exist: making a link fails where a rename would overwrite."""
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
    """Remove temporary files that killed runs left beside ``path``, or those matching the pattern ``endings``."""
    ours = re.compile(re.escape(f".{path.name}") + endings + r"\.(\d+)-[0-9a-f]{8}\.tmp")
    with suppress(OSError):
        for left in path.parent.iterdir():
            found = ours.fullmatch(left.name)
            if found and not is_alive(int(found[1])):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def is_alive(process: int) -> bool:
    """Whether there is a process of this number, of whatever user."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def put_folder(new: Path, place: Path) -> None:
    """Rename the folder ``new`` to ``place``. A folder there is replaced without a moment in which none exists.

    If the system cannot exchange two folders, there is such a moment; ``new`` is then complete beside it.
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
    """Exchange two names in one step (Linux's renameat2); False if the system cannot."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
