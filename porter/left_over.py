"""What a killed run would leave: processes end with their parent, and the next run removes temporary folders."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from porter.atomic import is_alive

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FOLDER = re.compile(r"mnv3-port-(\d+)-\w+")


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
