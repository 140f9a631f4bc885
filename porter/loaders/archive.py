"""Unpacking of a released ``.tgz`` into a temporary folder."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from porter.errors import CheckpointError

# A released tarball holds at most 130 MB; anything far beyond is not one of them.
MAX_UNPACKED = 4 << 30


def unpack(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Unpack the regular files of the gzipped tar ``path``; the folder goes when the result is cleaned up.

    They lie below the archive's own name, so that messages about them name the archive. Links and names
    that leave the folder are refused. Raises CheckpointError on damage.
    """
    folder = tempfile.TemporaryDirectory(prefix="mnv3-port-")
    try:
        with tarfile.open(path, "r:gz") as archive:
            total = 0
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isfile() or name.is_absolute() or ".." in name.parts:
                    raise CheckpointError(
                        f"{path}: refusing member {member.name!r}: a link, a device or an unsafe path"
                    )
                total += member.size
                if total > MAX_UNPACKED:
                    raise CheckpointError(
                        f"{path}: unpacks to more than {MAX_UNPACKED >> 30} GiB; not a released tarball"
                    )
                # Content alone: damaged times, owners and modes then do not matter
                target = Path(folder.name) / path.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                if source is not None:
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError) as error:
        folder.cleanup()
        raise CheckpointError(f"{path}: damaged archive ({error}); fetch it again") from error
    except BaseException:
        folder.cleanup()
        raise
    return folder
