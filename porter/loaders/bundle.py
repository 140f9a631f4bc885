"""Reader of V2 checkpoints: a tensor bundle, i.e. one ``.index`` table and ``.data-?????-of-?????`` shards.

The format is that of tensorflow/core/util/tensor_bundle and tensorflow/core/protobuf/tensor_bundle.proto.
Opening reads the index alone; each tensor is a view of the mapped shard until it is read.
"""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator
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


def read_bundle(prefix: Path, fetch: Fetch | None = None) -> Contents:
    """Open the V2 checkpoint ``prefix``; its variables come in name order.

    ``fetch`` gives the bytes of shards that are not here (see porter.loaders.remote).

    Object-based checkpoints (TensorFlow 2) give the names that their object graph holds. Raises
    CheckpointError when the index is damaged, a shard is missing or too short, or an entry makes no sense.
    Tensor values are checked against their checksums when they are read.
    """
    index = prefix.with_name(prefix.name + ".index")
    entries = _read_index(index)
    header = _header(index, entries)
    bundle = _Bundle(index, prefix, header.num_shards, header.endianness == BIG_ENDIAN, entries, fetch)
    variables = {variable.name: variable for variable in bundle.variables()}
    graph = bundle.object_graph()
    names = resolve_names(variables, graph, str(index)) if graph is not None else Resolved(variables, {})
    files = [index, *(() if fetch else bundle.paths)]
    return Contents(names.variables, files, names.set_aside, prefetch=bundle.prefetch)


def _header(index: Path, entries: dict[bytes, bytes]) -> Any:
    header = protos.parse(protos.BundleHeaderProto, entries.pop(HEADER_KEY, b""), str(index), "the bundle header")
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
    return {key: bytes(value) for key, value in read_table(memoryview(data), str(index))}


class _Bundle:
    """What all variables of one bundle share: the index entries and the mapped shards."""

    def __init__(
        self,
        index: Path,
        prefix: Path,
        shards: int,
        big_endian: bool,
        entries: dict[bytes, bytes],
        fetch: Fetch | None,
    ) -> None:
        self.index = index
        self.fetch = fetch
        self.ready: dict[Extent, bytes] = {}  # fetched, not yet read
        self.big_endian = big_endian
        self.entries = entries
        self.paths = [shard_path(prefix, number, shards) for number in range(shards)]
        # Weak: a shard stays mapped while an array of it lives, so that reading variable by variable
        # never holds more than one of them in memory.
        self.maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
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
        for key, value in self.entries.items():
            if key.startswith(b"\0"):  # a slice of a partitioned variable, reached through its entry
                continue
            name = key.decode(errors="replace")
            entry = self._entry(value, name)
            if entry.slices:
                load = self._sliced(name, entry)
                file = str(self.index)
            else:
                load = self._whole(name, entry)
                file = str(self.paths[entry.shard_id])
            dtype = dtypes.NAMES.get(entry.dtype, f"dtype {entry.dtype}")
            yield Variable(name, protos.shape_of(entry.shape), dtype, name, file, load)

    def object_graph(self) -> bytes | None:
        """The serialized TrackableObjectGraph of an object-based checkpoint."""
        value = self.entries.get(OBJECT_GRAPH_KEY.encode())
        if value is None:
            return None
        entry = self._entry(value, OBJECT_GRAPH_KEY)
        strings = self._strings(OBJECT_GRAPH_KEY, entry)
        return strings[0] if strings else b""

    def _strings(self, name: str, entry: Any) -> list[bytes]:
        """String tensors: lengths as varints, their masked CRC32C, then the bytes (WriteStringTensor)."""
        what = f"{self.paths[entry.shard_id]}: tensor {name}"
        data = self._bytes(entry)
        lengths, position = [], 0
        try:
            for _ in range(math.prod(protos.shape_of(entry.shape))):
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

    def _entry(self, value: bytes, name: str) -> Any:
        entry = protos.parse(protos.BundleEntryProto, value, str(self.index), f"the entry of {name}")
        shape = protos.shape_of(entry.shape)
        item = dtypes.ITEM_SIZES.get(dtypes.NAMES.get(entry.dtype, ""))
        if any(size < 0 for size in shape) or not 0 <= entry.shard_id < len(self.paths):
            raise CheckpointError(f"{self.index}: tensor {name}: impossible shape {shape} or shard {entry.shard_id}")
        if entry.slices:
            return entry
        if item is not None and entry.size != item * math.prod(shape):
            raise CheckpointError(
                f"{self.index}: tensor {name}: {entry.size} bytes stored for shape {shape} of "
                f"{dtypes.NAMES[entry.dtype]}; the index is damaged"
            )
        end, available = entry.offset + entry.size, self.sizes[entry.shard_id]
        if entry.offset < 0 or entry.size < 0 or end > available:
            raise CheckpointError(
                f"{self.paths[entry.shard_id]}: truncated: tensor {name} ends at byte {end}, the file has "
                f"{available}; fetch the file again"
            )
        return entry

    def _whole(self, name: str, entry: Any) -> Callable[[], np.ndarray]:
        return lambda: self._read(name, entry)

    def _sliced(self, name: str, entry: Any) -> Callable[[], np.ndarray]:
        """Reader of a partitioned variable: every slice lies under a key of its own."""
        what, shape = f"{self.index}: tensor {name}", protos.shape_of(entry.shape)
        parts = []
        for proto in entry.slices:
            extents = extents_of(proto)
            where = place(extents, shape, what)
            stored = self.entries.get(slice_key(name, extents))
            if stored is None:
                raise CheckpointError(f"{what}: slice {extents} is missing; the index is damaged")
            slice_entry = self._entry(stored, f"{name} {extents}")
            if protos.shape_of(slice_entry.shape) != shape_of_slices(where) or slice_entry.dtype != entry.dtype:
                raise CheckpointError(f"{what}: slice {extents} has another shape or dtype; the index is damaged")
            parts.append(Part(where, self._whole(name, slice_entry)))
        return assemble(parts, shape, dtypes.NAMES.get(entry.dtype, ""), what)

    def _read(self, name: str, entry: Any) -> np.ndarray:
        import numpy as np

        path = self.paths[entry.shard_id]
        dtype = dtypes.NAMES.get(entry.dtype, f"dtype {entry.dtype}")
        if dtype not in dtypes.ITEM_SIZES:
            raise CheckpointError(f"{path}: tensor {name}: {dtype} values cannot be read, only numbers")
        data = self._bytes(entry)
        if masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(
                f"{path}: tensor {name}: checksum mismatch, the data is damaged; fetch the file again"
            )
        stored = dtypes.to_numpy(dtype)
        if not self.big_endian:
            return np.frombuffer(data, stored).reshape(protos.shape_of(entry.shape))
        swapped = np.frombuffer(data, stored.newbyteorder(">")).astype(stored)
        return swapped.reshape(protos.shape_of(entry.shape))

    def _bytes(self, entry: Any) -> memoryview:
        if self.fetch:
            extent = self._extent(entry)
            return memoryview(self.ready.pop(extent, b"") or self.fetch([extent])[0])
        return self._shard(entry.shard_id)[entry.offset : entry.offset + entry.size]

    def _extent(self, entry: Any) -> Extent:
        return Extent(self.paths[entry.shard_id], entry.offset, entry.size)

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch the bytes of variables, by stored name, in few requests; ``read`` takes them."""
        if not self.fetch:
            return
        keys = [name.encode() for name in names]
        entries = [(key, self._entry(self.entries[key], key.decode())) for key in keys if key in self.entries]
        parts = [self.entries.get(slice_key(key.decode(), extents_of(s))) for key, e in entries for s in e.slices]
        plain = [entry for _, entry in entries if not entry.slices]
        plain += [self._entry(part, "a slice") for part in parts if part is not None]
        extents = [self._extent(entry) for entry in plain]
        self.ready = dict(zip(extents, self.fetch(extents), strict=True))

    def _shard(self, number: int) -> memoryview:
        mapped = self.maps.get(number)
        if mapped is None:
            path, size = self.paths[number], self.sizes[number]
            if not size:  # an empty file cannot be mapped
                return memoryview(b"")
            try:
                with path.open("rb") as file:
                    mapped = self.maps[number] = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return memoryview(mapped)
