"""Reader of V2 checkpoints: a tensor bundle, i.e. one ``.index`` table and ``.data-?????-of-?????`` shards.

The format is that of tensorflow/core/util/tensor_bundle and tensorflow/core/protobuf/tensor_bundle.proto.
Opening reads the index alone; each tensor is read from its shard when it is asked for.
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
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.loaders import dtypes, protos
from porter.loaders.crc import masked_crc32c
from porter.loaders.object_graph import OBJECT_GRAPH_KEY, Resolved, resolve_names
from porter.loaders.ordered_code import slice_key
from porter.loaders.remote import Extent, Fetch
from porter.loaders.slices import Part, assemble, extents_of, place, shape_of_slices
from porter.loaders.table import read_table, varint
from porter.loaders.variable import Contents, Variable

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]

VERSION = 1  # kTensorBundleVersion
HEADER_KEY = b""
BIG_ENDIAN = 1  # BundleHeaderProto.Endianness.BIG
_MAX_SHARDS = 99_999  # five digits in the file name


def shard_path(prefix: Path, shard: int, shards: int) -> Path:
    """The path of shard number ``shard`` of ``shards``."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def shard_count(index: Path) -> int:
    """The number of shards that ``index`` tells of. Raises CheckpointError when it is damaged."""
    count: int = _header(index, _read_index(index)).num_shards
    return count


def read_bundle(prefix: Path, fetch: Fetch | None = None, checksums: bool = True) -> Contents:
    """Open the V2 checkpoint ``prefix``; its variables come in name order.

    ``fetch`` gives the bytes of shards that are not here (see porter.loaders.remote).

    Object-based checkpoints (TensorFlow 2) give the names that their object graph holds. Raises
    CheckpointError when the index is damaged, a shard is missing or too short, or an entry makes no sense.
    Tensor values are checked against their checksums when they are read, but for ``checksums`` False.
    """
    index = prefix.with_name(prefix.name + ".index")
    entries = _read_index(index)
    header = _header(index, entries)
    bundle = _Bundle(index, prefix, header.num_shards, header.endianness == BIG_ENDIAN, entries, fetch, checksums)
    with _no_collection():
        variables = {variable.name: variable for variable in bundle.variables()}
    graph = bundle.object_graph()
    names = resolve_names(variables, graph, str(index)) if graph is not None else Resolved(variables, {})
    files = [index, *(() if fetch else bundle.paths)]
    return Contents(names.variables, files, names.set_aside, prefetch=bundle.prefetch)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Up to 10^6 objects are made and none is garbage; the collector would walk them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _header(index: Path, entries: dict[bytes, bytes]) -> Any:
    header = protos.parse(protos.BundleHeaderProto, entries.pop(HEADER_KEY, b""), index, "the bundle header")
    if header.version.min_consumer > VERSION:
        raise CheckpointError(f"{index}: written for bundle readers of version {header.version.min_consumer} or later")
    if not 0 < header.num_shards <= _MAX_SHARDS:
        raise CheckpointError(f"{index}: no bundle header with a number of shards: not a V2 checkpoint, or damaged")
    return header


def _read_index(index: Path) -> dict[bytes, bytes]:
    try:
        data = index.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{index}: {error.strerror}") from error
    return dict(read_table(data, str(index)))


class _Bundle:
    """What all variables of one bundle share: the index entries and the shards."""

    def __init__(
        self,
        index: Path,
        prefix: Path,
        shards: int,
        big_endian: bool,
        entries: dict[bytes, bytes],
        fetch: Fetch | None,
        checksums: bool,
    ) -> None:
        self.index = index
        self.checksums = checksums
        self.fetch = fetch
        self.ready: dict[Extent, bytes] = {}  # fetched, not yet read
        self.big_endian = big_endian
        self.entries = entries
        self.shapes: dict[bytes, Shape] = {}  # by TensorShapeProto
        self.paths = [shard_path(prefix, number, shards) for number in range(shards)]
        self.shards: dict[int, FileIO] = {}  # open ones
        self.reading = threading.Lock()  # a shard has one position
        self.sizes = [self._size(path) for path in self.paths]

    def _size(self, path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                f"{path}: missing shard of {self.index.name} ({error.strerror}); fetch all "
                f"{len(self.paths)} shard(s) into the same folder"
            ) from error

    def variables(self) -> Iterator[Variable]:
        files, read = [str(path) for path in self.paths], self._read
        for key, value in self.entries.items():
            if key.startswith(b"\0"):  # a slice of a partitioned variable, reached through its entry
                continue
            name = key.decode(errors="replace")
            entry, shape = self._entry(value, name)
            if entry.slices:
                load, file = self._sliced(name, entry, shape), str(self.index)
            else:
                load, file = partial(read, name, entry, shape), files[entry.shard_id]
            dtype = dtypes.NAMES.get(entry.dtype) or f"dtype {entry.dtype}"
            yield Variable(name, shape, dtype, name, file, load)

    def object_graph(self) -> bytes | None:
        """The serialized TrackableObjectGraph of an object-based checkpoint."""
        value = self.entries.get(OBJECT_GRAPH_KEY.encode())
        if value is None:
            return None
        entry, shape = self._entry(value, OBJECT_GRAPH_KEY)
        strings = self._strings(OBJECT_GRAPH_KEY, entry, shape)
        return strings[0] if strings else b""

    def _strings(self, name: str, entry: Any, shape: Shape) -> list[bytes]:
        """String tensors: lengths as varints, their masked CRC32C, then the bytes (WriteStringTensor)."""
        what = f"{self.paths[entry.shard_id]}: tensor {name}"
        data = self._bytes(name, entry)
        lengths, position = [], 0
        try:
            for _ in range(math.prod(shape)):
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

    def _entry(self, value: bytes, name: str) -> tuple[Any, Shape]:
        """The entry ``value`` and its shape. Checkpoints have 10^5 of them: protobuf's fields are read once each."""
        entry = protos.parse(protos.BundleEntryProto, value, self.index, name)
        stored = entry.shape
        shape = self.shapes.get(stored)
        if shape is None:
            proto = protos.parse(protos.TensorShapeProto, stored, self.index, f"the shape of {name}")
            shape = self.shapes[stored] = protos.shape_of(proto)
        shard = entry.shard_id
        if (shape and min(shape) < 0) or not 0 <= shard < len(self.paths):
            raise CheckpointError(f"{self.index}: tensor {name}: impossible shape {shape} or shard {shard}")
        if entry.slices:
            return entry, shape
        size, dtype = entry.size, dtypes.NAMES.get(entry.dtype, "")
        item = dtypes.ITEM_SIZES.get(dtype)
        if item is not None and size != item * math.prod(shape):
            raise CheckpointError(
                f"{self.index}: tensor {name}: {size} bytes stored for shape {shape} of {dtype}; the index is damaged"
            )
        start, available = entry.offset, self.sizes[shard]
        if start < 0 or size < 0 or start + size > available:
            raise CheckpointError(
                f"{self.paths[shard]}: truncated: tensor {name} ends at byte {start + size}, the file has "
                f"{available}; fetch the file again"
            )
        return entry, shape

    def _sliced(self, name: str, entry: Any, shape: Shape) -> Callable[[], np.ndarray]:
        """Reader of a partitioned variable: every slice lies under a key of its own."""
        what = f"{self.index}: tensor {name}"
        parts = []
        for proto in entry.slices:
            extents = extents_of(proto)
            where = place(extents, shape, what)
            stored = self.entries.get(slice_key(name, extents))
            if stored is None:
                raise CheckpointError(f"{what}: slice {extents} is missing; the index is damaged")
            slice_entry, slice_shape = self._entry(stored, f"{name} {extents}")
            if slice_shape != shape_of_slices(where) or slice_entry.dtype != entry.dtype:
                raise CheckpointError(f"{what}: slice {extents} has another shape or dtype; the index is damaged")
            parts.append(Part(where, partial(self._read, name, slice_entry, slice_shape)))
        return assemble(parts, shape, dtypes.NAMES.get(entry.dtype, ""), what)

    def _read(self, name: str, entry: Any, shape: Shape) -> np.ndarray:
        import numpy as np

        path = self.paths[entry.shard_id]
        dtype = dtypes.NAMES.get(entry.dtype, f"dtype {entry.dtype}")
        if dtype not in dtypes.ITEM_SIZES:
            raise CheckpointError(f"{path}: tensor {name}: {dtype} values cannot be read, only numbers")
        data = self._bytes(name, entry)
        if self.checksums and masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(
                f"{path}: tensor {name}: checksum mismatch, the data is damaged; fetch the file again"
            )
        stored = dtypes.to_numpy(dtype)
        if not self.big_endian:
            return np.frombuffer(data, stored).reshape(shape)
        swapped = np.frombuffer(data, stored.newbyteorder(">")).astype(stored)
        return swapped.reshape(shape)

    def _bytes(self, name: str, entry: Any) -> memoryview:
        if self.fetch:
            extent = self._extent(entry)
            return memoryview(self.ready.pop(extent, b"") or self.fetch([extent])[0])
        # Read, not mapped: a view of a mapped file keeps a file descriptor, or all of the file in memory
        import numpy as np

        path, data = self.paths[entry.shard_id], memoryview(np.empty(entry.size, np.uint8).data)
        with self.reading:
            try:
                shard = self.shards.get(entry.shard_id) or self.shards.setdefault(entry.shard_id, FileIO(path))
                shard.seek(entry.offset)
                done = 0
                while done < len(data):  # one read gives 2 GiB at most
                    if not (count := shard.readinto(data[done:])):
                        raise CheckpointError(f"{path}: tensor {name}: the file has become shorter; fetch it again")
                    done += count
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        return data

    def _extent(self, entry: Any) -> Extent:
        return Extent(self.paths[entry.shard_id], entry.offset, entry.size)

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch the bytes of variables, by stored name, in few requests; ``read`` takes them."""
        if not self.fetch:
            return
        keys = [name.encode() for name in names]
        entries = [(key, self._entry(self.entries[key], key.decode())[0]) for key in keys if key in self.entries]
        parts = [self.entries.get(slice_key(key.decode(), extents_of(s))) for key, e in entries for s in e.slices]
        plain = [entry for _, entry in entries if not entry.slices]
        plain += [self._entry(part, "a slice")[0] for part in parts if part is not None]
        extents = [self._extent(entry) for entry in plain]
        self.ready = dict(zip(extents, self.fetch(extents), strict=True))
