"""Putting partitioned variables together from their slices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from porter.errors import CheckpointError
from porter.sources import dtypes

if TYPE_CHECKING:
    import numpy as np


def slice_key(name: str, extents: tuple[Extent, ...]) -> bytes:
    """The table key of the slice of variable ``name`` that covers ``extents``."""
    escaped = name.encode().replace(b"\0", b"\0\xff")  # 0xff needs escaping too, but UTF-8 never has it
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


Extent = tuple[int, int | None]  # start and length along one dimension; length None: all of it
Extents = tuple[Extent, ...]  # of every dimension
Shape = tuple[int, ...]

MAX_CELLS = 1 << 20  # partitioners cut along one axis; the largest seen made 80 slices


class Part(NamedTuple):
    """One slice: its position in the whole, and its reader."""

    where: tuple[slice, ...]
    read: Callable[[], np.ndarray]


def shape_of_slices(where: tuple[slice, ...]) -> Shape:
    """The shape of the slice at ``where``."""
    return tuple(s.stop - s.start for s in where)


def extents_of(proto: Any) -> Extents:
    """The extents of a TensorSliceProto."""
    return tuple((extent.start, extent.length if extent.HasField("length") else None) for extent in proto.extent)


def place(extents: Extents, shape: Shape, what: str) -> tuple[slice, ...]:
    """``extents`` as numpy slices. Raises CheckpointError, beginning with ``what``, if they leave ``shape``."""
    where = tuple(
        slice(start, size if length is None else start + length)
        for (start, length), size in zip(extents, shape, strict=False)
    )
    inside = all(0 <= s.start <= s.stop <= size for s, size in zip(where, shape, strict=False))
    if len(extents) != len(shape) or not inside:
        raise CheckpointError(f"{what}: slice {extents} is outside {shape}; the file is damaged")
    return where


def assemble(parts: Sequence[Part], shape: Shape, dtype: str, what: str) -> Callable[[], np.ndarray]:
    """A reader of the whole variable. Raises CheckpointError unless ``parts`` tile ``shape``, each value once."""
    _check_tiling([part.where for part in parts], shape, what)

    def read() -> np.ndarray:
        import numpy as np

        if dtype not in dtypes.ITEM_SIZES:
            raise CheckpointError(f"{what}: {dtype} values cannot be read, only numbers")
        if len(parts) == 1:
            return parts[0].read()
        whole = np.empty(shape, dtypes.to_numpy(dtype))
        for part in parts:
            whole[part.where] = part.read()
        return whole

    return read


def _check_tiling(parts: Sequence[tuple[slice, ...]], shape: Shape, what: str) -> None:
    covered = sum(math.prod(shape_of_slices(where)) for where in parts)
    if covered != math.prod(shape):
        raise CheckpointError(f"{what}: its slices cover {covered} of {math.prod(shape)} values; a shard is missing?")
    if len(parts) == 1:
        return
    # All starts and ends of slices cut the variable into cells; a slice covers a cell fully or not at all
    places = [
        sorted({end for where in parts for end in (where[axis].start, where[axis].stop)}) for axis in range(len(shape))
    ]
    if math.prod(map(len, places)) > MAX_CELLS:
        raise CheckpointError(f"{what}: is cut into {len(parts)} slices in a way that no partitioner cuts")
    number = [{place: index for index, place in enumerate(along)} for along in places]
    seen: set[tuple[int, ...]] = set()
    for where in parts:
        inside = [range(number[axis][s.start], number[axis][s.stop]) for axis, s in enumerate(where)]
        for cell in itertools.product(*inside):
            if cell in seen:
                raise CheckpointError(f"{what}: two of its slices overlap; the file is damaged")
            seen.add(cell)
