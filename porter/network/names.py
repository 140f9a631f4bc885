"""Names with placeholders, such as ``expanded_conv_{index}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

MOST_CHARACTERS = 1000  # of a filled name; TensorFlow's longest here have about 80
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def fill(template: str, values: Mapping[str, str | int]) -> str:
    """``template`` with each ``{placeholder}`` replaced by its value.

    Plain placeholders only: str.format would take widths of gigabytes and attributes of objects from the file.
    Raises KeyError for an unknown placeholder, ValueError for other braces and for a name that gets too long.
    """
    if "{" in (rest := PLACEHOLDER.sub("", template)) or "}" in rest:
        raise ValueError(f"{template[:60]!r} has other braces than those of plain placeholders such as {{index}}")
    if sum(len(str(values[name])) for name in PLACEHOLDER.findall(template)) + len(rest) > MOST_CHARACTERS:
        raise ValueError(f"{template[:60]!r} becomes longer than {MOST_CHARACTERS} characters")
    return PLACEHOLDER.sub(lambda found: str(values[found[1]]), template)
