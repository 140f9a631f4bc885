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

    By default glibc returns freed memory to the system: at first beyond 128 KiB, later beyond up to 64 MiB
    (mallopt(3)). Memory that is used again then takes a page fault for every 4 KiB, which is a third of the time of 32
    images. 128 MiB hold their largest map (16 channels of 112 x 112) five times. Larger maps gain nothing. Other C
    libraries have no such function.
    """
    with suppress(OSError, AttributeError, TypeError):  # CDLL(None) is no library on Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 128 << 20)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
