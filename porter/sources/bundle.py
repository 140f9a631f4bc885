"""Reader of V2 checkpoints: a tensor bundle, i.e. one ``.index`` table and ``.data-?????-of-?????`` shards.

The format is that of tensorflow/core/util/tensor_bundle and tensorflow/core/protobuf/tensor_bundle.proto. Opening reads
only the index; a tensor is read from its shard on demand.
"""

from __future__ import annotations

import gc
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from porter.errors import CheckpointError
from porter.sources import dtypes
from porter.sources.bounds import check_total
from porter.sources.bundle_graph import beside_bundle
from porter.sources.bundle_index import Entry, EntryParser, Index, read_index, shard_path
from porter.sources.keras import by_config
from porter.sources.object_graph import OBJECT_GRAPH_KEY, Resolved, resolve_names
from porter.sources.remote import ByteRange, Fetch
from porter.sources.slices import Part, assemble, place, shape_of_slices, slice_key
from porter.sources.sstable import masked_crc32c, varint
from porter.sources.variable import Contents, Variable

if TYPE_CHECKING:
    import numpy as np


def read_bundle(prefix: Path, fetch: Fetch | None = None, checksums: bool = True) -> Contents:
    """Open the V2 checkpoint ``prefix``; its variables come in name order.

    ``fetch`` gives the bytes of shards that are not here (see porter.sources.remote). Object-based checkpoints
    (TensorFlow 2) give the names in their object graph. Values are checked against their checksums when read, unless
    ``checksums`` is False. Raises CheckpointError if the index is damaged, a shard is missing or too short, or an entry
    is malformed.
    """
    with _no_collection():
        index = read_index(prefix.with_name(prefix.name + ".index"))
        bundle = _Bundle(index, prefix, fetch, checksums)
        variables = {variable.name: variable for variable in bundle.variables()}
    graph = bundle.object_graph()
    names = resolve_names(variables, graph, str(index.path)) if graph is not None else Resolved(variables, {})
    by_keras = by_config(prefix, names.variables) if graph is not None and not fetch else None
    if by_keras:
        names = names._replace(variables=by_keras[0])
    check_total(names.variables.values(), [index.path, *bundle.paths], str(index.path))
    files = [index.path, *(() if fetch else bundle.paths)]
    stated = by_keras[1] if by_keras else beside_bundle(prefix, names.names)
    return Contents(names.variables, files, names.set_aside, prefetch=bundle.prefetch, graph=stated)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: up to 10^6 objects are made, none is garbage, and it would scan them repeatedly."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _identity(path: Path) -> tuple[int, ...] | None:
    """Size, inode and time of the file, which change if it is replaced or rewritten. None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_ino, found.st_mtime_ns


class _Bundle:
    """What all variables of one bundle share: the index entries and the shards."""

    def __init__(self, index: Index, prefix: Path, fetch: Fetch | None, checksums: bool) -> None:
        self.index = index.path
        self.entries = index.entries
        self.big_endian = index.big_endian
        self.checksums = checksums
        self.fetch = fetch
        self.ready: dict[ByteRange, bytes] = {}  # fetched, not yet read
        self.paths = [shard_path(prefix, number, index.shards) for number in range(index.shards)]
        self.shards: dict[int, FileIO] = {}  # open ones
        self.known = {} if fetch else {path: _identity(path) for path in self.paths}
        self.reading = threading.Lock()  # a shard has one position
        self.parse = EntryParser(self.index, self.paths, [self._size(path) for path in self.paths])

    def _size(self, path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                f"{path}: missing shard of {self.index.name} ({error.strerror}); fetch all "
                f"{len(self.paths)} shard(s) into the same folder"
            ) from error

    def variables(self) -> Iterator[Variable]:
        files, read, parse = [str(path) for path in self.paths], self._read, self.parse
        for key, value in self.entries.items():
            if key.startswith(b"\0"):  # a slice of a partitioned variable, reached through its entry
                continue
            name = key.decode(errors="replace")
            entry = parse(value, name)
            if entry.slices:
                load, file = self._sliced(name, entry), str(self.index)
            else:
                load, file = partial(read, name, entry), files[entry.shard]
            yield Variable(name, entry.shape, entry.dtype, name, file, load)

    def object_graph(self) -> bytes | None:
        """The serialized TrackableObjectGraph of an object-based checkpoint."""
        value = self.entries.get(OBJECT_GRAPH_KEY.encode())
        if value is None:
            return None
        strings = self._strings(OBJECT_GRAPH_KEY, self.parse(value, OBJECT_GRAPH_KEY))
        return strings[0] if strings else b""

    def _strings(self, name: str, entry: Entry) -> list[bytes]:
        """String tensors: lengths as varints, their masked CRC32C, then the bytes (WriteStringTensor)."""
        what = f"{self.paths[entry.shard]}: tensor {name}"
        data = self._bytes(name, entry)
        lengths, position = [], 0
        try:
            for _ in range(math.prod(entry.shape)):
                length, position = varint(data, position)
                lengths.append(length)
        except (IndexError, ValueError) as error:
            raise CheckpointError(f"{what}: the lengths of its strings are damaged") from error
        sizes = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths)
        checksum, values = data[position : position + 4], data[position + 4 :]
        if masked_crc32c(sizes, checksum, values) != entry.crc32c or sum(lengths) != len(values):
            raise CheckpointError(f"{what}: checksum mismatch, the data is damaged; fetch the file again")
        starts = itertools.accumulate(lengths, initial=0)
        return [bytes(values[start : start + length]) for start, length in zip(starts, lengths, strict=False)]

    def _sliced(self, name: str, entry: Entry) -> Callable[[], np.ndarray]:
        """Reader of a partitioned variable: every slice has its own key."""
        what = f"{self.index}: tensor {name}"
        parts = []
        for extents in entry.slices:
            where = place(extents, entry.shape, what)
            stored = self.entries.get(slice_key(name, extents))
            if stored is None:
                raise CheckpointError(f"{what}: slice {extents} is missing; the index is damaged")
            part = self.parse(stored, f"{name} {extents}")
            if part.shape != shape_of_slices(where) or part.dtype != entry.dtype:
                raise CheckpointError(f"{what}: slice {extents} has another shape or dtype; the index is damaged")
            parts.append(Part(where, partial(self._read, name, part)))
        return assemble(parts, entry.shape, entry.dtype, what)

    def _read(self, name: str, entry: Entry) -> np.ndarray:
        import numpy as np

        path = self.paths[entry.shard]
        if entry.dtype not in dtypes.ITEM_SIZES:
            raise CheckpointError(f"{path}: tensor {name}: {entry.dtype} values cannot be read, only numbers")
        data = self._bytes(name, entry)
        if self.checksums and masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(
                f"{path}: tensor {name}: checksum mismatch, the data is damaged; fetch the file again"
            )
        if not self.fetch and _identity(path) != self.known[path]:
            raise CheckpointError(f"{path}: has changed while it was read; try again")
        stored = dtypes.to_numpy(entry.dtype)
        if not self.big_endian:
            return np.frombuffer(data, stored).reshape(entry.shape)
        swapped = np.frombuffer(data, stored.newbyteorder(">")).astype(stored)
        return swapped.reshape(entry.shape)

    def _bytes(self, name: str, entry: Entry) -> memoryview:
        if self.fetch:
            extent = self._extent(entry)
            return memoryview(self.ready.pop(extent, b"") or self.fetch([extent])[0])
        # Not mapped: a view of a mapped file holds a file descriptor, or the whole file in memory
        import numpy as np

        path, data = self.paths[entry.shard], memoryview(np.empty(entry.size, np.uint8).data)
        with self.reading:
            try:
                shard = self.shards.get(entry.shard) or self.shards.setdefault(entry.shard, FileIO(path))
                shard.seek(entry.offset)
                done = 0
                while done < len(data):  # one read gives 2 GiB at most
                    if not (count := shard.readinto(data[done:])):
                        raise CheckpointError(f"{path}: tensor {name}: the file has become shorter; fetch it again")
                    done += count
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        return data

    def _extent(self, entry: Entry) -> ByteRange:
        return ByteRange(self.paths[entry.shard], entry.offset, entry.size)

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch the bytes of variables, by stored name, in few requests; ``read`` then uses them."""
        if not self.fetch:
            return
        entries = {name: self.parse(stored, name) for name in names if (stored := self.entries.get(name.encode()))}
        parts = [self.entries.get(slice_key(name, extents)) for name, e in entries.items() for extents in e.slices]
        plain = [entry for entry in entries.values() if not entry.slices]
        plain += [self.parse(part, "a slice") for part in parts if part is not None]
        extents = [self._extent(entry) for entry in plain]
        self.ready = dict(zip(extents, self.fetch(extents), strict=True))
