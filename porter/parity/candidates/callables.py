"""Ports that are code: their names, and the process that a command runs them in."""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from porter.errors import ParityError
from porter.process import die_with_parent


def is_callable(named: str) -> bool:
    """Whether ``named`` is ``package.module:callable`` or ``file.py:callable``."""
    _, colon, name = named.partition(":")
    return bool(colon) and "://" not in named and name.isidentifier() and not Path(named).exists()


def run_apart(named: str) -> ParityError | None:
    """Go on in a child process, with None. This one waits, and exits with the child's exit code.

    Code can end its process with any exit code, crash it, or take all memory. None of this is a verdict, so this
    process gets the error to raise. Call it before torch is imported, whose threads do not survive a fork.
    """
    parent, ended = os.getpid(), mmap.mmap(-1, 1)  # shared with the child
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        atexit.register(ended.write_byte, 1)  # what os._exit and signals leave out
        return None

    def forward(number: int, _: object) -> None:
        time.sleep(1)  # a terminal sends it to the child as well, which then ends by itself
        if not ended[0]:
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended[0]:
        sys.exit(code)
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}{', for want of memory?' if code == -9 else ''}"
    return ParityError(f"{named}: its code ended the process, {how}, so that there is no verdict")
