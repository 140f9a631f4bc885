"""Messages for failed network requests, with advice."""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Iterator

SILENCE = 30  # seconds without a byte
MISSING = "no such file or folder there"


def reason(error: BaseException) -> str:
    """The cause of ``error`` in words: connection refused, time-out, unknown host, HTTP status. Wrapping is undone."""
    chain = list(_chain(error))
    for one in chain:
        code = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(code, int) and code >= 400:
            return f"{MISSING if code in (404, 410) else 'the server refuses to give it'} (HTTP {code})"
        name = type(one).__name__.lower()
        if isinstance(one, socket.gaierror) or "dns" in name or "nameresolution" in name:
            return "its host name does not resolve; is it spelt right, and is this machine online?"
        if isinstance(one, TimeoutError) or "timeout" in name:
            return f"no answer within {SILENCE} s; try again"
        if isinstance(one, ConnectionRefusedError):
            return "its host refuses the connection; is the port right, and the server running?"
    if any(isinstance(one, FileNotFoundError) for one in chain):
        return MISSING
    said = str(getattr(error, "reason", None) or error)
    return f"cannot be read: {said.splitlines()[0] if said else type(error).__name__}"


def missing(error: BaseException) -> bool:
    """Whether ``error`` says that the server was reached, and has no such file."""
    return reason(error).startswith(MISSING)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from, the first cause first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen and len(seen) < 20:
        seen.append(error)
        within = error.reason if isinstance(error, urllib.error.URLError) else None
        error = within if isinstance(within, BaseException) else error.__cause__ or error.__context__
    return reversed(seen)
