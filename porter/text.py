"""Text from outside made safe for what takes it: a terminal and XML, Markdown, CSV, YAML, JSON.

HTML is escaped by its templates (porter.report.pages), which take printable text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

MOST = 300  # characters of an error message
SCHEMA = 1  # of the objects that --json prints; another one where a key goes or changes its meaning


def printable(text: str) -> str:
    """``text`` on one line: control characters, escape sequences and lone surrogates written as ``\\x1b``.

    So a name from a file cannot look like a line of output or move the cursor, and XML can hold it.
    """
    return "".join(_escape(character) for character in text)


def markdown_text(text: str) -> str:
    """``text`` as Markdown that shows exactly that, anywhere within a line.

    Escapes only with backslashes: an entity such as ``&#x27;`` has characters that would be escaped in turn.
    """
    return re.sub(r"[\\`*_{}\[\]()#+!|~<>&$@]", r"\\\g<0>", printable(text))


def csv_text(text: str) -> str:
    """``text`` as a cell of a CSV: printable, and nothing that a spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def yaml_text(text: str) -> str:
    """``text`` as a quoted string of YAML, whose escapes are Python's."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shortened(line: str, most: int = MOST) -> str:
    """``line`` made printable and cut to ``most`` characters; the end, where messages say what to do, is kept."""
    shown = printable(line)
    half = (most - 5) // 2
    return shown if len(shown) <= most else f"{shown[:half]} ... {shown[-half:]}"


def listed(names: Sequence[str], most: int) -> str:
    """The first ``most`` names, printable, and how many more there are."""
    return printable(", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else ""))


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON. NaN and infinity become null, as JSON has neither; names that are no Unicode are escaped."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` as what JSON has: NaN and infinity are None, tuples are lists."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {plain(key): plain(below) for key, below in value.items()}
    return [plain(below) for below in value] if isinstance(value, (list, tuple)) else value


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
