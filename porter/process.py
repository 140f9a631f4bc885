"""This process: the cores that it may use, the memory that it keeps, and nothing left behind when it is killed."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from porter.atomic import is_alive

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "200000 100000" is two cores, "max 100000" no limit
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
FOLDER = re.compile(r"mnv3-port-(\d+)-\w+")


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


def die_with_parent(parent: int) -> None:
    """Make the system kill this process when its ``parent`` ends, however it ends (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before the system was told
            os._exit(1)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with this process in its name. Those of this user's processes that have ended are removed."""
    with suppress(OSError):
        for left in Path(tempfile.gettempdir()).iterdir():
            found = FOLDER.fullmatch(left.name)
            if found and not is_alive(int(found[1])) and left.lstat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"mnv3-port-{os.getpid()}-")
