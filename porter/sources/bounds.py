"""Limits on what a file may claim: shapes that exist, and no more memory than its size allows."""

from __future__ import annotations

import math
import re
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from porter.errors import CheckpointError
from porter.sources.variable import Variable

# A reader may take TIMES the bytes of its source and SLACK bytes for itself. Weights become float32: at most four times
# their stored size (8 bits). No tool writes anything denser.
TIMES, SLACK = 4, 64 << 20

MAX_RANK = 32  # numpy's is 64; TensorFlow's 254; no variable of a network has more than 5
MAX_VALUES = 1 << 48
MAX_DIRECTORY = 1 << 20  # bytes of a zip's list of members; a PyTorch file of 1,000 tensors has 100 KB
END_OF_ZIP = 22 + (1 << 16)  # bytes in which a zip's end lies: the record, and a comment

Kind = Literal["bytes", "files", "requests"]
MOST: dict[Kind, int] = {
    "bytes": 4 << 30,  # fetched and unpacked; a released tarball unpacks to 130 MB
    "files": 10_000,  # unpacked, folders too; a released tarball has 20
    "requests": 1_000,  # files asked for; a checkpoint has 3, the largest models' some hundred
}
SILENCE = 30  # seconds without a byte
SLOWEST = 1 << 10  # bytes a second, so that its bytes bound the time of a fetch; a modem of 1995 had three times that

MOST_BEHIND = 64  # nodes between a layer and its weights; quantisation-aware training has 12


def allowance(size: int) -> int:
    """Bytes that the values of a source of ``size`` bytes may take in memory."""
    return TIMES * size + SLACK


class Budget:
    """What may still be taken for one source. Whatever fetches or unpacks for it gets the same one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.left = dict(MOST)

    def take(self, count: int, what: Kind) -> None:
        """Raise CheckpointError if ``count`` more are too many."""
        self.left[what] -= count
        if self.left[what] < 0:
            raise CheckpointError(f"{self.source}: takes more than {MOST[what]:,} {what}; no released checkpoint does")


def check_pace(begun: float, count: int, source: str) -> None:
    """Raise CheckpointError if ``count`` bytes are too few since ``begun`` (time.monotonic)."""
    if time.monotonic() - begun > SILENCE + count / SLOWEST:
        raise CheckpointError(f"{source}: sends less than {SLOWEST} bytes a second; stopped, try again")


def check_shape(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """``shape``. Raises CheckpointError, beginning with ``what``, if no array can have it."""
    sides = [side for side in shape if side]
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or math.prod(sides[: MAX_RANK + 1]) > MAX_VALUES:
        raise CheckpointError(f"{what}: impossible shape {list(shape[:6])}{' ...' if len(shape) > 6 else ''}; damaged")
    return shape


def check_total(variables: Iterable[Variable], files: Iterable[Path], source: str) -> None:
    """Raise CheckpointError if ``variables`` claim more memory than their ``files`` can fill.

    This finds slices that share bytes, one value repeated without end, and datasets that were never written.
    """
    claimed = sum(variable.nbytes for variable in variables)
    stored = sum(path.stat().st_size for path in files)
    if claimed > allowance(stored):
        raise CheckpointError(
            f"{source}: its variables claim {claimed:,} bytes, the files have {stored:,}; damaged or hostile"
        )


def check_zip(path: Path) -> None:
    """Raise BadZipFile where the list of members, which zipfile reads at once, is longer than MAX_DIRECTORY bytes."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_OF_ZIP))
        tail = file.read(END_OF_ZIP)
    for found in re.finditer(b"PK\5\6", tail):  # the end's record: APPNOTE.TXT, 4.3.16
        size = int.from_bytes(tail[found.start() + 12 : found.start() + 16], "little")
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a list of members of {size} bytes")


def limit_memory(more: int) -> None:
    """Allow this process only ``more`` bytes beyond its current memory (only on Linux)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        status = Path("/proc/self/status").read_text()
        now = int(re.findall(r"VmData:\s+(\d+)", status)[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (now + more,) * 2)
