"""Keys of the slices of a partitioned variable in a bundle's index.

``EncodeTensorNameSlice`` (tensorflow/core/util/saved_tensor_slice_util.cc) in the order-preserving
encoding of tensorflow/core/lib/strings/ordered_code.cc.
"""

from __future__ import annotations

from porter.formats.slices import Extent


def slice_key(name: str, extents: tuple[Extent, ...]) -> bytes:
    """The table key of the slice of variable ``name`` that covers ``extents``."""
    escaped = name.encode().replace(b"\0", b"\0\xff")  # 0xff needs escaping too, but UTF-8 has none
    key = _number(0) + escaped + b"\0\1" + _number(len(extents))
    for start, length in extents:
        key += _encode_signed(start) + _encode_signed(-1 if length is None else length)
    return key


def _number(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _encode_signed(value: int) -> bytes:
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1  # one header bit per byte, one sign bit
    header = ((1 << size) - 1) << (8 * size - size)  # `size` leading ones, as in kLengthToHeaderBits
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")
