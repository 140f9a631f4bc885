"""Writer of TensorFlow's sorted string table; porter.sources.sstable reads it and describes the format."""

from __future__ import annotations

from collections.abc import Iterable

from porter.sources.sstable import FOOTER_SIZE, MAGIC, NO_COMPRESSION, SNAPPY, masked_crc32c

_BLOCK_SIZE = 4096  # bytes before compression, as in LevelDB; TensorFlow's table::Options::block_size is 256 KiB
_RESTART_INTERVAL = 16  # entries between whole keys


def table_bytes(entries: Iterable[tuple[bytes, bytes]], snappy: bool = False) -> bytes:
    """A whole table of ``entries``, which must come in key order."""
    out = bytearray()
    index: list[tuple[bytes, bytes]] = []
    block: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in entries:
        block.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_SIZE:
            index.append((key, _append_block(out, block, snappy)))
            block, size = [], 0
    if block:
        index.append((block[-1][0], _append_block(out, block, snappy)))
    metaindex = _append_block(out, [], snappy)
    footer = metaindex + _append_block(out, index, snappy)
    return bytes(out) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def _append_block(out: bytearray, entries: list[tuple[bytes, bytes]], snappy: bool) -> bytes:
    """Add a block to ``out`` and return its handle."""
    block, kind = _block(entries), NO_COMPRESSION
    if snappy:
        import cramjam

        block, kind = bytes(cramjam.snappy.compress_raw(block)), SNAPPY
    handle = _varint(len(out)) + _varint(len(block))
    out += block + bytes([kind])
    out += masked_crc32c(block, bytes([kind])).to_bytes(4, "little")
    return handle


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % _RESTART_INTERVAL:
            longest = min(len(key), len(previous))
            shared = next((i for i in range(longest) if key[i] != previous[i]), longest)
        elif number:
            restarts.append(len(out))
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        previous = key
    return bytes(out) + b"".join(offset.to_bytes(4, "little") for offset in [*restarts, len(restarts)])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
