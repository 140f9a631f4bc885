"""A release's folder: written beside its place and then renamed, with hashed names and checksums."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from porter.artifacts.artifact import CHECKSUMS
from porter.atomic import check_folder, put_folder, sweep, temporary_beside
from porter.errors import Option, PorterError
from porter.sources.checkpoint import sha256

HASH_LENGTH = 8  # what torch.hub's check_hash looks for at the end of a file's name


@contextmanager
def staged(folder: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside ``folder`` that takes its place when the block ends well; otherwise it is removed.

    ``force`` replaces an earlier release. Raises PorterError if ``folder`` is something else, or cannot be written.
    """
    if folder.exists() and folder.samefile(Path.cwd()):
        raise PorterError(f"{folder}: is the folder you are in; name another one")
    folder = folder.resolve()  # a link stays: its target is replaced
    for place in (folder, folder.parent):  # written beside its place, then renamed
        check_folder(place)
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / CHECKSUMS).is_file():
            raise PorterError(f"{folder}: holds other files; name a new folder for the release")
        if not force:
            what = "holds a release already; choose another folder or use"
            raise PorterError(f"{folder}: {what}", option=Option("force"))
    temporary = temporary_beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary.mkdir()
        yield temporary
        put_folder(temporary, folder)
    except OSError as error:
        raise PorterError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def add_hash(path: Path) -> Path:
    """Rename ``name.pth`` to ``name-<first 8 of its SHA-256>.pth``, torch.hub's convention."""
    return path.rename(path.with_name(f"{path.stem}-{sha256(path)[:HASH_LENGTH]}{path.suffix}"))


def write_checksums(folder: Path) -> None:
    """``SHA256SUMS`` of every file, in the format of ``sha256sum``."""
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / CHECKSUMS).write_text("".join(lines))


def checksum_problems(folder: Path) -> list[str]:
    """The differences from ``SHA256SUMS``. Raises PorterError if it is missing or malformed."""
    path = folder / CHECKSUMS
    if not path.is_file():
        raise PorterError(f"{folder}: no {CHECKSUMS} in it; not a release")
    listed: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise PorterError(f"{path}: line {line!r} is no checksum")
        listed[name] = digest
    present = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    strange = [name for name, file in present.items() if file.is_symlink() or not file.is_file()]
    if strange:
        raise PorterError(f"{folder}: {len(strange)} entries are not regular files:", strange)
    problems = [f"{name}: listed in {CHECKSUMS}, but missing" for name in listed if name not in present]
    problems += [f"{name}: not listed in {CHECKSUMS}" for name in present if name not in listed]
    return problems + [
        f"{name}: its SHA-256 is not the one in {CHECKSUMS}"
        for name, file in present.items()
        if name in listed and sha256(file) != listed[name]
    ]


def _files(folder: Path) -> list[Path]:
    """Everything below ``folder`` except folders and its checksums; includes links and devices."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if path != folder / CHECKSUMS)
