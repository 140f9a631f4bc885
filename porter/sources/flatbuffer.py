"""FlatBuffers whose every vector is checked against the file's size."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flatbuffers.table import Table

from porter.errors import CheckpointError

MIN_NUMBERS = 1 << 16  # more than the operators and tensors of any network here have
Read = TypeVar("Read")


def read_flatbuffer(data: bytes, read: Callable[[Node], Read], what: str) -> Read:
    """What ``read`` makes of the root table. Raises CheckpointError, beginning with ``what``, if it is damaged."""
    try:
        root = struct.unpack_from("<I", data)[0]
        return read(Node(Table(data, root), [len(data) // 4 + MIN_NUMBERS]))
    except (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, UnicodeDecodeError) as error:
        # What FlatBuffers' accessors raise on bad offsets
        raise CheckpointError(f"{what} ({error}); fetch it again") from error


class Node:
    """A FlatBuffers table with fields by position."""

    def __init__(self, table: Table, left: list[int]) -> None:
        self.table = table
        self.left = left  # elements that may still be read; a file can share vectors, memory cannot

    def _offset(self, position: int) -> int:
        offset: int = self.table.Offset(4 + 2 * position)
        return offset

    def number(self, position: int, flags: Any, default: int = 0) -> int:
        """The scalar in a field, ``default`` where the file leaves it out."""
        value: int = self.table.GetSlot(4 + 2 * position, default, flags)
        return value

    def child(self, position: int) -> Node | None:
        """The table in a field, if there is one."""
        offset = self._offset(position)
        if not offset:
            return None
        return Node(Table(self.table.Bytes, self.table.Indirect(offset + self.table.Pos)), self.left)

    def text(self, position: int) -> str:
        """The string in a field; empty if there is none."""
        offset = self._offset(position)
        if not offset:
            return ""
        text: bytes = self.table.String(offset + self.table.Pos)
        self._take(len(text) // 4)
        return text.decode(errors="replace")

    def _vector(self, position: int, width: int) -> tuple[int, int]:
        """Start and length of a vector, which must lie in the file."""
        offset = self._offset(position)
        if not offset:
            return 0, 0
        start, length = self.table.Vector(offset), self.table.VectorLen(offset)
        if start < 0 or start + length * width > len(self.table.Bytes):
            raise ValueError(f"a vector of {length} elements leaves the file")
        return start, length

    def numbers(self, position: int, code: str) -> tuple[Any, ...]:
        """The vector of scalars in a field; ``code`` is struct's."""
        start, length = self._vector(position, struct.calcsize(f"<{code}"))
        self._take(length)
        return struct.unpack_from(f"<{length}{code}", self.table.Bytes, start)

    def children(self, position: int) -> Iterator[Node]:
        """The tables of the vector in a field."""
        start, length = self._vector(position, 4)
        self._take(length)
        for index in range(length):
            yield Node(Table(self.table.Bytes, self.table.Indirect(start + 4 * index)), self.left)

    def _take(self, count: int) -> None:
        self.left[0] -= count
        if self.left[0] < 0:
            raise ValueError("its vectors are shared, and longer together than the file")

    def content(self, position: int) -> tuple[int, int]:
        """Start and length of the bytes in a field."""
        return self._vector(position, 1)
