"""Unpacking of a released ``.tgz``, or a zip, into a temporary folder."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from porter.errors import CheckpointError
from porter.process import temporary_folder
from porter.sources.bounds import Budget, check_zip

MAX_NAME = 1 << 16  # bytes of a member's name, or of its extended header
MAX_DEPTH = 32  # folders; a released tarball has 3
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


class _TarInfo(tarfile.TarInfo):
    """Refuses long names and headers, and lists of holes, which tarfile would read into memory unchecked."""

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_gnulong(self._short(archive))  # type: ignore[misc]

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_pax(self._short(archive))  # type: ignore[misc]

    def _proc_sparse(self, _archive: tarfile.TarFile) -> tarfile.TarInfo:
        raise tarfile.ReadError("a file with holes")

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError("a file with holes")

    def _short(self, archive: tarfile.TarFile) -> tarfile.TarFile:
        if self.size > MAX_NAME:
            raise tarfile.ReadError(f"a name of {self.size} bytes")
        return archive


class _Member(NamedTuple):
    """A member of an archive. ``plain`` is False for links, devices and files with holes."""

    name: str
    size: int
    folder: bool
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, budget: Budget) -> tempfile.TemporaryDirectory[str]:
    """Unpack the regular files of the zip or gzipped tar ``path``; the folder goes when the result is cleaned up.

    They lie below the archive's own name, so that messages about them name it. Links and names that leave the folder
    are refused. Raises CheckpointError on damage, or beyond the ``budget``.
    """
    folder = temporary_folder()
    try:
        for member in _members(path):
            budget.take(1, "files")
            if member.folder:
                continue
            name = PurePosixPath(member.name.replace("\\", "/"))
            if len(name.parts) > MAX_DEPTH:
                raise CheckpointError(f"{path}: has folders more than {MAX_DEPTH} deep; not a released tarball")
            if not member.plain or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
                raise CheckpointError(
                    f"{path}: refusing member {member.name[:100]!r}: a link, a device or an unsafe path"
                )
            budget.take(member.size, "bytes")
            # Only content, so that damaged times, owners and modes do not matter
            target = Path(folder.name) / path.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = member.open()
            if source is not None:
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        OSError,
        ValueError,
        OverflowError,
        NotImplementedError,
        RuntimeError,
        IndexError,
        struct.error,
    ) as error:
        folder.cleanup()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise CheckpointError(f"{path}: cannot be unpacked into {folder.name}: {error.strerror}") from error
        raise CheckpointError(f"{path}: damaged archive ({error}); fetch it again") from error
    except BaseException:
        folder.cleanup()
        raise
    return folder


def _members(path: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(path):
        check_zip(path)
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                yield _Member(info.filename, info.file_size, info.is_dir(), plain, partial(packed.open, info))
        return
    with tarfile.open(path, "r:gz", tarinfo=_TarInfo) as archive:
        for member in archive:
            plain = member.isfile() and not member.issparse()
            yield _Member(member.name, member.size, member.isdir(), plain, partial(archive.extractfile, member))
