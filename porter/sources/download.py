"""Fetching a released tarball: resumed where it broke off, checked, renamed when complete."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO

import crc32c

from porter.atomic import check_output, is_stream, place_of, write_through
from porter.errors import PorterError
from porter.process import temporary_folder
from porter.sources.bounds import MOST, SILENCE, check_pace
from porter.sources.redirects import SCHEMES, Redirects
from porter.sources.remote import reason

CHUNK = 1 << 16
Progress = Callable[[int, int | None], None]


class DownloadError(PorterError):
    """A download failed or does not match its digest."""


def download(
    url: str,
    output: Path,
    *,
    sha256: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch ``url`` into ``output`` through ``<output>.part``, which a later call resumes.

    The size is checked against the server's, the content against ``sha256`` and the digests that Google's storage sends
    (``x-goog-hash``). ``progress(done, total)`` gets bytes. If ``output`` is a device, a FIFO or a descriptor, the
    whole file is checked before its first byte is written, and no part is kept. Raises DownloadError; a part with wrong
    content is removed, an incomplete one is kept.
    """
    check_output(output, force)
    if is_stream(output):
        with temporary_folder() as folder:
            whole = Path(folder) / "whole"
            _fetch_checked(url, whole, sha256, progress, "try again")
            with whole.open("rb") as file:
                write_through(output, file)
        return output
    place = place_of(output)
    part = place.with_name(place.name + ".part")
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise DownloadError(f"{part}: is not a regular file; remove it")
    with _only_writer(part):
        keeps = f"{part} keeps what was fetched; the same command continues from there"
        _fetch_checked(url, part, sha256, progress, keeps)
        part.replace(place)
    return output


@contextmanager
def _only_writer(part: Path) -> Iterator[None]:
    """Hold the file ``part``, made where it is missing; an empty one goes at the end. Raises DownloadError.

    Two that append to one file would leave neither's content, and a server without digests would not tell.
    """
    import fcntl

    try:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists() or _moved(part, file):
                raise BlockingIOError
            try:
                yield
            finally:
                if _fetched(part) == 0:
                    part.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise DownloadError(f"{part}: another process fetches it; wait for it, or name another output") from error
    except OSError as error:
        raise DownloadError(f"{part}: cannot be written: {error.strerror or error}") from error


def _moved(part: Path, file: IO[bytes]) -> bool:
    """Whether ``part`` is another file than the open one: who held it has finished meanwhile."""
    return not os.path.samestat(part.stat(), os.fstat(file.fileno()))


def _fetched(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_checked(url: str, part: Path, sha256: str | None, progress: Progress | None, broken_off: str) -> None:
    """Fetch the rest of ``part`` and check the whole. ``broken_off`` says what to do if the connection breaks."""
    try:
        headers, total = _fetch(url, part, sha256, progress)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "filename", None) == str(part):  # ours, not the network's
            raise DownloadError(f"{part}: cannot be written: {getattr(error, 'strerror', error)}") from error
        raise DownloadError(f"{url}: {reason(error)}{f'; {broken_off}' if _fetched(part) else ''}") from error
    size = part.stat().st_size
    if total is not None and size < total:
        raise DownloadError(f"{url}: broke off at {size} of {total} bytes; {broken_off}")
    wrong = (
        f"{size} bytes instead of {total}" if total is not None and size > total else _mismatch(part, headers, sha256)
    )
    _version_file(part).unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise DownloadError(f"{url}: {wrong}; nothing was kept, try again")


def _version_file(part: Path) -> Path:
    """The file that keeps the version of ``part`` (the server's ETag, else Last-Modified)."""
    return part.with_name(part.name + ".version")


def _fetch(url: str, part: Path, sha256: str | None, progress: Progress | None) -> tuple[Message, int | None]:
    """Append what is missing to ``part``. Returns the headers and, if known, the whole size."""
    start = _fetched(part)
    version = _version_file(part).read_text() if start and _version_file(part).is_file() else ""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    if version:  # another version is sent whole
        request.add_header("If-Range", version)
    if request.type not in SCHEMES:
        raise DownloadError(f"{url}: only {' and '.join(SCHEMES)} addresses are fetched")
    try:
        response = urllib.request.build_opener(Redirects).open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # 416: there is nothing after the part
            raise
        whole = error.headers.get("Content-Range", "").rpartition("/")[2]
        return error.headers, int(whole) if whole.isdigit() else None
    with response:
        resumed = response.status == 206
        sent = response.headers.get("Content-Range", "")
        if resumed and not sent.strip().lower().startswith(f"bytes {start}-"):
            raise DownloadError(f"{url}: sends another part ({sent[:60]!r}) than the one asked for; remove {part}")
        if resumed and not (version or sha256 or response.headers.get("x-goog-hash")):
            os.truncate(part, 0)  # without a version, two parts may be of different files
            return _fetch(url, part, sha256, progress)
        if start and not resumed:  # a server without ranges, or with another version, starts over
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        most = MOST["bytes"] if total is None else min(total, MOST["bytes"])
        if total is not None and total > MOST["bytes"]:
            raise DownloadError(f"{url}: announces {total} bytes; no released file has more than {MOST['bytes']}")
        if not resumed:
            _keep_version(response.headers, part)
        with part.open("ab" if resumed else "wb") as file:
            begun, before = time.monotonic(), file.tell()
            while chunk := response.read1(CHUNK):  # read would wait for a whole one
                if file.tell() + len(chunk) > most:
                    raise DownloadError(f"{url}: sends more than {most} bytes; stopped")
                file.write(chunk)
                check_pace(begun, file.tell() - before, url)
                if progress:
                    progress(file.tell(), total)
        return response.headers, total


def _keep_version(headers: Message, part: Path) -> None:
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified", "")  # with a weak tag, bytes may differ
    if version and version.isprintable():
        _version_file(part).write_text(version)
    else:
        _version_file(part).unlink(missing_ok=True)


def _mismatch(path: Path, headers: Message, sha256: str | None) -> str | None:
    """A message if ``path`` does not match one of the digests, else None."""
    wanted = {"sha256": sha256.lower()} if sha256 else {}
    for entry in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        name, _, value = entry.strip().partition("=")
        if name in ("md5", "crc32c"):
            try:
                wanted[name] = base64.b64decode(value, validate=True).hex()
            except ValueError:
                return f"the server's digest {name}={value[:40]} is damaged"
    hashes = {name: hashlib.new(name) for name in wanted if name != "crc32c"}
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = crc32c.crc32c(chunk, crc)
            for running in hashes.values():
                running.update(chunk)
    found = {name: running.hexdigest() for name, running in hashes.items()} | {"crc32c": f"{crc:08x}"}
    return next(
        (f"{name} is {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value), None
    )
