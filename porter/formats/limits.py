"""How much memory a process may take that looks at a stranger's file."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def limit_memory(more: int) -> None:
    """From now on this process may take ``more`` bytes than it has; only where the system can (Linux)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        status = Path("/proc/self/status").read_text()
        now = int(re.findall(r"VmData:\s+(\d+)", status)[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (now + more,) * 2)
