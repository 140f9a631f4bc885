"""What a file may ask for: shapes that exist, and no more memory than its size allows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from porter.errors import CheckpointError
from porter.sources.variable import Variable

# A reader may take TIMES the bytes of its source, and SLACK bytes more for itself. Weights become float32, at most four
# times as wide as they are stored (8 bits). No tool writes anything denser.
TIMES, SLACK = 4, 64 << 20

MAX_RANK = 32  # numpy's is 64; TensorFlow's 254; no variable of a network has more than 5
MAX_VALUES = 1 << 48


def allowance(size: int) -> int:
    """How much memory the values of a source of ``size`` bytes may take."""
    return TIMES * size + SLACK


def check_shape(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """``shape``. Raises CheckpointError, beginning with ``what``, where no array has it."""
    sides = [side for side in shape if side]
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or math.prod(sides[: MAX_RANK + 1]) > MAX_VALUES:
        raise CheckpointError(f"{what}: impossible shape {list(shape[:6])}{' ...' if len(shape) > 6 else ''}; damaged")
    return shape


def check_total(variables: Iterable[Variable], files: Iterable[Path], source: str) -> None:
    """Raise CheckpointError where ``variables`` claim more memory than their ``files`` can fill.

    Slices that share bytes, one value repeated without end and datasets that were never written all show here.
    """
    claimed = sum(variable.nbytes for variable in variables)
    stored = sum(path.stat().st_size for path in files)
    if claimed > allowance(stored):
        raise CheckpointError(
            f"{source}: its variables claim {claimed:,} bytes, the files have {stored:,}; damaged or hostile"
        )


def limit_memory(more: int) -> None:
    """Allow this process only ``more`` bytes beyond its current memory (Linux alone)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        status = Path("/proc/self/status").read_text()
        now = int(re.findall(r"VmData:\s+(\d+)", status)[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (now + more,) * 2)
