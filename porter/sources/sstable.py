"""Reader of TensorFlow's sorted string table (tensorflow/core/lib/io/table_format.txt, from LevelDB).

A table is a run of blocks, each followed by a type byte and a masked CRC32C, then an index block of
(last key, block handle) and a 48-byte footer. Keys within a block share prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import crc32c

from porter.errors import CheckpointError
from porter.sources.bounds import TIMES

_MASK_DELTA = 0xA282EAD8  # kMaskDelta


def masked_crc32c(*chunks: bytes | memoryview) -> int:
    """CRC32C of the concatenated chunks, rotated and offset as TensorFlow and LevelDB store it."""
    crc = 0
    for chunk in chunks:
        crc = crc32c.crc32c(chunk, crc)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # kTableMagicNumber
FOOTER_SIZE = 48  # two block handles padded to 40 bytes, then the magic number
TRAILER_SIZE = 5  # block type and masked CRC32C
NO_COMPRESSION, SNAPPY = 0, 1

Data = Any  # bytes, or a FileView

# A block is 4 KiB unless one entry is larger; even an index block of 10^6 variables is far smaller than this
_MAX_BLOCK_SIZE = 1 << 28
MAX_KEYS = 1 << 28  # bytes of the keys of one block
MORE_KEYS = 16 << 20  # bytes of all keys beyond 4 x the file's size; 10^6 names of 80 letters take 80 MB


def is_table(data: Data) -> bool:
    """Whether ``data`` ends like a table."""
    return len(data) >= FOOTER_SIZE and bytes(data[-8:]) == MAGIC


def read_table(data: bytes, file: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key, value) in key order. Raises CheckpointError that names ``file`` on any damage."""
    keys = 0
    with _located(file):
        for _, handle in _block_handles(data, file):
            for key, value in _entries(_read_block(data, handle, file), TIMES * len(data) + MORE_KEYS - keys):
                keys += len(key)
                yield key, value


def look_up(data: Data, key: bytes, file: str) -> bytes | None:
    """The value under ``key``, or None; reads the index block and one other. Raises CheckpointError on damage."""
    with _located(file):
        handle = next((handle for last_key, handle in _block_handles(data, file) if key <= last_key), None)
        entries = _entries(_read_block(data, handle, file)) if handle else ()
        return next((value for found, value in entries if found == key), None)


def _block_handles(data: Data, file: str) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """For each data block: a key at or after its last one, and its handle."""
    if not is_table(data):
        raise CheckpointError(f"{file}: truncated or not a TensorFlow index (no table footer); fetch the file again")
    footer = bytes(data[-FOOTER_SIZE:])
    _, position = _handle(footer, 0)  # the metaindex block, which TensorFlow leaves empty
    index_handle, _ = _handle(footer, position)
    end = 0
    for last_key, value in _entries(_read_block(data, index_handle, file)):
        handle = _handle(value, 0)[0]
        if handle[0] < end:
            raise _Malformed("two of its blocks overlap")
        end = sum(handle)
        yield last_key, handle


@contextmanager
def _located(file: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, _Malformed) as error:
        raise CheckpointError(f"{file}: the table is damaged ({error}); fetch the file again") from error


class _Malformed(ValueError):
    pass


def _read_block(data: Data, handle: tuple[int, int], file: str) -> bytes:
    offset, size = handle
    if offset + size + TRAILER_SIZE > len(data):
        raise _Malformed(f"a block at {offset} of {size} bytes runs past the end")
    block, kind = data[offset : offset + size], data[offset + size]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + TRAILER_SIZE], "little")
    if masked_crc32c(data[offset : offset + size + 1]) != stored:
        raise CheckpointError(f"{file}: checksum mismatch in the block at byte {offset}; fetch the file again")
    if kind == NO_COMPRESSION:
        return bytes(block)
    if kind == SNAPPY:
        return _unsnap(block)
    raise _Malformed(f"unknown block type {kind}")


def _unsnap(block: Data) -> bytes:
    from cramjam import DecompressionError, snappy

    size, _ = varint(block, 0)
    if size > _MAX_BLOCK_SIZE or size > 64 * len(block) + 64:  # snappy's best ratio is below 64
        raise _Malformed(f"a snappy block of {len(block)} bytes claims {size}")
    try:
        return bytes(snappy.decompress_raw(block))
    except DecompressionError as error:
        raise _Malformed(f"snappy: {error}") from error


def _entries(block: bytes, most: int = MAX_KEYS) -> list[tuple[bytes, bytes]]:
    """The entries of a block. Keys share prefixes in the file but not in memory, so they may total ``most`` bytes."""
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else 0
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise _Malformed("the restart array is longer than its block")
    position, key = 0, b""
    entries: list[tuple[bytes, bytes]] = []
    while position < end:
        shared, unshared, length = block[position], block[position + 1], block[position + 2]
        position += 3
        if shared >= 128 or unshared >= 128 or length >= 128:  # longer than one byte each: start over
            shared, position = varint(block, position - 3)
            unshared, position = varint(block, position)
            length, position = varint(block, position)
        middle = position + unshared
        if shared > len(key) or middle + length > end:
            raise _Malformed("an entry runs past its block")
        previous, key = key, key[:shared] + block[position:middle]
        most -= len(key)
        if most < 0:
            raise _Malformed("its keys are longer than the file allows")
        if key <= previous and entries:
            raise _Malformed("keys are out of order")
        position = middle + length
        entries.append((key, block[middle:position]))
    return entries


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def varint(data: Data, position: int) -> tuple[int, int]:
    """The varint at ``position`` and the position after it. Raises IndexError or ValueError on damage."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _Malformed("a varint is longer than 64 bits")
