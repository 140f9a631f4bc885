"""What a process may use: cores, and memory that it keeps."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from contextlib import suppress
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "200000 100000" is two cores, "max 100000" no limit


def cores() -> int:
    """Number of cores that this process may use: on Linux by its affinity and its container's quota, else all."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or no limit
        quota, period = map(int, QUOTA.read_text().split())
        count = min(count, math.ceil(quota / period))
    return max(1, count)


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep up to 128 MiB that were freed, for the next layer or file.

    glibc maps blocks of 128 KiB on one by one, and gives freed memory back (mallopt(3), its thresholds then grow with
    the blocks that are freed, but not beyond 64 MiB). Every 4 KiB that it gave back cost a page fault when they are
    used again, which is a third of a batch's time. 128 MiB are three times the largest map of 48 images of 224 x 224;
    for larger maps nothing changes. Other C libraries have no such function.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 128 << 20)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
