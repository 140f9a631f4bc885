"""Sources behind a URL (``https://``, ``gs://``, ``s3://``, ``hf://`` ...), read through fsspec.

Of a checkpoint, the index and the graph are fetched whole, and of the shards only the bytes asked for, if the store
supports ranges. Empty files of the same size stand in for the shards, so that the checkpoint looks like a local one.
Anything else is fetched whole.
"""

from __future__ import annotations

import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urljoin

from porter.errors import CheckpointError
from porter.process import temporary_folder
from porter.sources.bounds import MOST, SILENCE, Budget, check_pace
from porter.sources.locate import SAVED_MODEL
from porter.sources.redirects import Redirects, check_redirect

MAX_PAGE = 16 << 20  # bytes of a listing, or of an answer to a request without a length
GAP = 1 << 16  # bytes; extents with a smaller gap share a request
_SHARD = re.compile(r"(.+)\.data-\d{5}-of-(\d{5})")


class ByteRange(NamedTuple):
    """``size`` bytes of ``file`` from ``start`` on."""

    file: Path
    start: int
    size: int


Fetch = Callable[[Sequence[ByteRange]], list[bytes]]


class Mirror(NamedTuple):
    """A remote source as local files: ``path`` is what was asked for, below ``folder``, which goes with it.

    ``fetch`` gives extents of files that have stand-ins. ``fetch_meta`` fetches the ``.meta`` of a checkpoint's local
    prefix, if the store has it.
    """

    path: Path
    folder: tempfile.TemporaryDirectory[str]
    fetch: Fetch
    fetch_meta: Callable[[Path], None]


def is_url(path: object) -> bool:
    """Whether ``path`` names a remote source."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def mirror(url: str, budget: Budget) -> Mirror:
    """Make ``url`` (a file, a checkpoint's prefix or a folder) available as local files.

    Raises CheckpointError if it cannot be reached, takes more than the ``budget``, or the file system's package is not
    installed.
    """
    folder = temporary_folder()
    try:
        with _wrap_errors(url):
            return _mirror(url, folder, budget)
    except BaseException:
        folder.cleanup()
        raise


def _mirror(url: str, folder: tempfile.TemporaryDirectory[str], budget: Budget) -> Mirror:
    import fsspec

    system, root = fsspec.core.url_to_fs(url, **(web_options() if url.startswith("http") else {}))
    root = root.rstrip("/")
    name = PurePosixPath(root.split("?")[0]).name
    if name in ("", ".", ".."):
        raise CheckpointError(f"{url}: name a file or folder on that host")
    base = Path(folder.name) / name
    places: dict[Path, str] = {}  # stand-in -> its remote file
    prefix = _prefix(system, root, name)
    if name == SAVED_MODEL:
        _fetch_file(system, root, base, budget)
        prefix = f"{root.removesuffix(name)}variables/variables"
        (base.parent / "variables").mkdir()
        _checkpoint(system, prefix, base.parent / "variables", places, budget)
    elif prefix is not None:
        _checkpoint(system, prefix, base.parent, places, budget)
    elif _size(system, root) is not None:
        _fetch_file(system, root, base, budget)
    else:
        _folder(system, root, base, places, budget)

    def fetch_meta(prefix: Path) -> None:
        remote = {local.with_name(local.name.rpartition(".data-")[0]): place for local, place in places.items()}
        meta = f"{remote[prefix].rpartition('.data-')[0]}.meta" if prefix in remote else ""
        with _wrap_errors(url):
            if meta and _size(system, meta) is not None:
                _fetch_file(system, meta, prefix.with_name(f"{prefix.name}.meta"), budget)

    return Mirror(base, folder, _ranges(url, system, places, budget), fetch_meta)


def exists(url: str) -> bool:
    """Whether there is a file at ``url``. Raises CheckpointError if its store cannot be reached."""
    import fsspec

    with _wrap_errors(url):
        system, root = fsspec.core.url_to_fs(url)
        return _size(system, root) is not None


def _size(system: Any, path: str) -> int | None:
    """Size of the file ``path`` in bytes; None if there is none. Not ``isfile``, which fetches over HTTP."""
    try:
        info = system.info(path)
    except FileNotFoundError as error:
        if not missing(error):  # fsspec also raises this for a server that it did not reach
            raise
        return None
    return int(info.get("size") or 0) if info.get("type") == "file" else None


def _prefix(system: Any, root: str, name: str) -> str | None:
    """The prefix of the V2 checkpoint that ``root`` names; None if it names none."""
    shard = _SHARD.fullmatch(name)
    stem = name.removesuffix(".index") if name.endswith(".index") else shard[1] if shard else name
    prefix = root[: len(root) - len(name)] + stem
    if stem == name and _size(system, root) is not None:  # a file of exactly that name
        return None
    return prefix if _size(system, f"{prefix}.index") is not None else None


def _checkpoint(system: Any, prefix: str, base: Path, places: dict[Path, str], budget: Budget) -> None:
    """Fetch the index of a V2 checkpoint, and make stand-ins for its shards."""
    from porter.sources.bundle_index import read_index, shard_path

    index = base / (PurePosixPath(prefix).name + ".index")
    _fetch_file(system, f"{prefix}.index", index, budget)
    shards = read_index(index).shards
    budget.take(shards, "requests")
    for number in range(shards):
        local = shard_path(index.with_suffix(""), number, shards)
        remote = prefix[: prefix.rindex("/") + 1] + local.name
        _stand_in(local, _size(system, remote), budget)
        places[local] = remote


def _folder(system: Any, root: str, base: Path, places: dict[Path, str], budget: Budget) -> None:
    """Fetch all files of a folder; if it holds checkpoints, only those."""
    found: dict[str, Any] = system.find(root, maxdepth=3, detail=True)
    if not found:
        raise CheckpointError(f"{system.unstrip_protocol(root)}: no such file, checkpoint or folder")
    if len(found) > MOST["requests"]:
        raise CheckpointError(f"{system.unstrip_protocol(root)}: has {len(found)} files; name the file")
    wanted = re.compile(r".*(\.index|\.data-\d{5}-of-\d{5}|/checkpoint|/saved_model\.pb)")
    checkpoints = any(path.endswith(".index") for path in found)
    for path, info in found.items():
        relative = PurePosixPath(path[len(root) :].lstrip("/"))
        if relative.is_absolute() or ".." in relative.parts or (checkpoints and not wanted.fullmatch(path)):
            continue
        local = base / relative
        local.parent.mkdir(parents=True, exist_ok=True)
        if _SHARD.fullmatch(local.name):
            _stand_in(local, info.get("size"), budget)
            places[local] = path
            continue
        _fetch_file(system, path, local, budget)


def _fetch_file(system: Any, place: str, local: Path, budget: Budget) -> None:
    """Fetch a whole file, whatever size was announced."""
    from fsspec.callbacks import Callback

    begun, taken = time.monotonic(), 0

    class Bounded(Callback):  # type: ignore[misc]
        def call(self, *_: object, **__: object) -> None:
            nonlocal taken
            budget.take(self.value - taken, "bytes")
            taken = self.value
            check_pace(begun, taken, system.unstrip_protocol(place))

    budget.take(1, "requests")
    system.get_file(place, str(local), callback=Bounded())


def web_options() -> dict[str, Any]:
    """Options of fsspec's HTTP file system: limits on the length of an answer, on silence and on redirects."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            started = await super().start(connection)
            packed = self.headers.get("Content-Encoding", "identity")
            if packed != "identity":  # a megabyte may unpack to a gigabyte
                self.close()
                raise CheckpointError(f"{self.url}: is sent packed ({packed[:20]}), which was not asked for")
            return started

        async def read(self) -> bytes:
            if self._body is None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
                most = int(asked[2]) - int(asked[1]) + 1 if asked and self.status == 206 else MAX_PAGE
                body, begun = bytearray(), time.monotonic()
                async for chunk in self.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > most:
                        self.close()
                        raise CheckpointError(f"{self.url}: sends more than the {most} bytes asked for")
                    check_pace(begun, len(body), str(self.url))
                self._body = bytes(body)
            return self._body

    # total=None: a large file may take long if bytes keep coming
    silence = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    traces = aiohttp.TraceConfig()

    async def on_redirect(_session: object, _context: object, seen: aiohttp.TraceRequestRedirectParams) -> None:
        place = seen.response.headers.get("Location") or seen.response.headers.get("URI") or ""
        check_redirect(str(seen.response.url), urljoin(str(seen.response.url), place))

    traces.on_request_redirect.append(on_redirect)
    return {
        "client_kwargs": {
            "response_class": Bounded,
            "timeout": silence,
            "trace_configs": [traces],
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
        }
    }


def _stand_in(path: Path, size: int | None, budget: Budget) -> None:
    if size is not None:  # otherwise it is missing, and the reader says so
        budget.take(size, "bytes")
        with path.open("wb") as file:
            file.truncate(size)


def _ranges(url: str, system: Any, places: dict[Path, str], budget: Budget) -> Fetch:
    """``fetch`` for ``places``: neighbouring extents share a request, and requests run at once if the store can."""
    probed: set[Path] = set()
    whole: set[Path] = set()  # files that were fetched whole

    def fetch(extents: Sequence[ByteRange]) -> list[bytes]:
        from fsspec.utils import merge_offset_ranges

        distant = [extent for extent in extents if extent.file not in whole]
        with _wrap_errors(url):
            for file in {extent.file for extent in distant} - probed:
                probed.add(file)
                if not _has_ranges(system, places[file]):
                    budget.left["bytes"] += file.stat().st_size  # its stand-in's
                    _fetch_file(system, places[file], file, budget)
                    whole.add(file)
            distant = [extent for extent in distant if extent.file not in whole]
            merged = merge_offset_ranges(
                [places[e.file] for e in distant],
                [e.start for e in distant],
                [e.start + e.size for e in distant],
                max_gap=GAP,
                sort=True,
            )
            runs: dict[str, list[tuple[int, bytes]]] = {}
            for place, start, end, data in zip(*merged, system.cat_ranges(*merged, on_error="raise"), strict=True):
                runs.setdefault(place, []).append((start, data))
                if len(data) != end - start:
                    raise CheckpointError(
                        f"{url}: {len(data)} bytes came where {end - start} were asked for; try again"
                    )
        return [_cut(extent, runs.get(places[extent.file], []), extent.file in whole) for extent in extents]

    return fetch


def _has_ranges(system: Any, place: str) -> bool:
    """Whether the store supports byte ranges. If not, it sends the whole file."""
    if "http" in (system.protocol if isinstance(system.protocol, str) else "".join(system.protocol)):
        request = urllib.request.Request(place, headers={"Range": "bytes=0-0"})
        with urllib.request.build_opener(Redirects).open(request, timeout=SILENCE) as response:
            return bool(response.status == 206)
    return len(system.cat_file(place, 0, 1)) <= 1


def _cut(extent: ByteRange, runs: list[tuple[int, bytes]], whole: bool) -> bytes:
    """The bytes of ``extent``: from the local file if it is complete, else from the run that covers them."""
    if whole:
        with extent.file.open("rb") as file:
            file.seek(extent.start)
            return file.read(extent.size)
    start, data = next((s, d) for s, d in runs if s <= extent.start and extent.start + extent.size <= s + len(d))
    return data[extent.start - start :][: extent.size]


@contextmanager
def _wrap_errors(url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{url}: {error}; or pip install 'mnv3-port[remote]'") from error
    except Exception as error:  # every store's package has its own errors
        raise CheckpointError(f"{url}: {reason(error)}") from error


MISSING = "no such file or folder there"


def reason(error: BaseException) -> str:
    """The cause of ``error`` in words: connection refused, time-out, unknown host, HTTP status. Unwraps errors."""
    chain = list(_chain(error))
    for one in chain:
        code = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(code, int) and code >= 400:
            return f"{MISSING if code in (404, 410) else 'the server refuses to give it'} (HTTP {code})"
        name = type(one).__name__.lower()
        if isinstance(one, socket.gaierror) or "dns" in name or "nameresolution" in name:
            return "its host name does not resolve; is it spelt right, and is this machine online?"
        if isinstance(one, TimeoutError) or "timeout" in name:
            return f"no answer within {SILENCE} s; try again"
        if isinstance(one, ConnectionRefusedError):
            return "its host refuses the connection; is the port right, and the server running?"
    if any(isinstance(one, FileNotFoundError) for one in chain):
        return MISSING
    said = str(getattr(error, "reason", None) or error)
    return f"cannot be read: {said.splitlines()[0] if said else type(error).__name__}"


def missing(error: BaseException) -> bool:
    """Whether ``error`` means that the server was reached and has no such file."""
    return reason(error).startswith(MISSING)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and its causes, the first cause first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen and len(seen) < 20:
        seen.append(error)
        within = error.reason if isinstance(error, urllib.error.URLError) else None
        error = within if isinstance(within, BaseException) else error.__cause__ or error.__context__
    return reversed(seen)
