"""TensorFlow's masked CRC32C (tensorflow/core/lib/hash/crc32c.h)."""

from __future__ import annotations

import crc32c

_MASK_DELTA = 0xA282EAD8  # kMaskDelta


def masked_crc32c(*chunks: bytes | memoryview) -> int:
    """CRC32C of the concatenated chunks, rotated and offset as TensorFlow and LevelDB store it."""
    crc = 0
    for chunk in chunks:
        crc = crc32c.crc32c(chunk, crc)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
