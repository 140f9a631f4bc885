"""The ``.index`` table of a V2 checkpoint: its header, and an entry for each tensor and each slice of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from porter.errors import CheckpointError
from porter.sources import dtypes, protos
from porter.sources.bounds import check_shape
from porter.sources.slices import Extents, Shape, extents_of
from porter.sources.sstable import read_table
from porter.sources.variable import read_file

VERSION = 1  # kTensorBundleVersion
HEADER_KEY = b""
BIG_ENDIAN = 1  # BundleHeaderProto.Endianness.BIG
_MAX_SHARDS = 99_999  # five digits in the file name
MAX_SHAPE = 1024  # bytes of a TensorShapeProto; a dimension takes up to 12


class Index(NamedTuple):
    """The content of the file ``path``; ``entries`` are BundleEntryProtos by key, without the header."""

    path: Path
    shards: int
    big_endian: bool
    entries: Mapping[bytes, bytes]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """The content of a BundleEntryProto. ``slices`` hold the values of a partitioned variable."""

    dtype: str
    shape: Shape
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[Extents, ...] = ()


class _Kind(NamedTuple):
    """What entries of one dtype and shape have in common. ``size`` is None if the dtype has no fixed size."""

    dtype: str
    shape: Shape
    size: int | None


def shard_path(prefix: Path, shard: int, shards: int) -> Path:
    """The path of shard number ``shard`` of ``shards``."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def read_index(path: Path) -> Index:
    """Read the table and its header. Raises CheckpointError if it is damaged, or needs a newer reader."""
    entries = dict(read_table(read_file(path), str(path)))
    header = protos.parse(protos.BundleHeaderProto, entries.pop(HEADER_KEY, b""), path, "the bundle header")
    if header.version.min_consumer > VERSION:
        raise CheckpointError(f"{path}: written for bundle readers of version {header.version.min_consumer} or later")
    if not 0 < header.num_shards <= _MAX_SHARDS:
        raise CheckpointError(f"{path}: no bundle header with a number of shards: not a V2 checkpoint, or damaged")
    return Index(path, header.num_shards, header.endianness == BIG_ENDIAN, entries)


class EntryParser:
    """Parses the entries of one index: up to 10^5, but few dtypes and shapes, each of which is parsed once."""

    def __init__(self, index: Path, shards: list[Path], sizes: list[int]) -> None:
        self.index = index
        self.shards = shards
        self.sizes = sizes
        self.kinds: dict[tuple[int, bytes], _Kind] = {}

    def __call__(self, value: bytes, name: str) -> Entry:
        """The entry stored as ``value``. Raises CheckpointError if it is malformed or its shard is too short."""
        proto = protos.parse(protos.BundleEntryProto, value, self.index, name)
        stored = (proto.dtype, proto.shape)
        dtype, shape, expected = self.kinds.get(stored) or self._kind(stored, name)
        shard, offset, size = proto.shard_id, proto.offset, proto.size
        if not 0 <= shard < len(self.sizes):
            raise CheckpointError(f"{self.index}: tensor {name}: impossible shard {shard}")
        if not size and proto.slices:
            return Entry(dtype, shape, shard, 0, 0, 0, tuple(extents_of(part) for part in proto.slices))
        if expected is not None and size != expected:
            raise CheckpointError(
                f"{self.index}: tensor {name}: {size} bytes stored for shape {shape} of {dtype}; the index is damaged"
            )
        if offset < 0 or size < 0 or offset + size > self.sizes[shard]:
            raise CheckpointError(
                f"{self.shards[shard]}: truncated: tensor {name} ends at byte {offset + size}, the file has "
                f"{self.sizes[shard]}; fetch the file again"
            )
        return Entry(dtype, shape, shard, offset, size, proto.crc32c)

    def _kind(self, stored: tuple[int, bytes], name: str) -> _Kind:
        number, data = stored
        what = f"{self.index}: tensor {name}"
        if len(data) > MAX_SHAPE:
            raise CheckpointError(f"{what}: impossible shape, of {len(data)} bytes; damaged")
        found = protos.shape_of(protos.parse(protos.TensorShapeProto, data, self.index, f"the shape of {name}"))
        shape = check_shape(found, what)
        dtype = dtypes.name_of(number)
        item = dtypes.ITEM_SIZES.get(dtype)
        kind = _Kind(dtype, shape, item * math.prod(shape) if item is not None else None)
        self.kinds[stored] = kind
        return kind
