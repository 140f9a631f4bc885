"""The console blocks of README and docs: what is typed there, and whether a command prints what is shown."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
# What is measured differs by machine, and between trained and untrained weights: any figure of the same form will do
MEASURED = re.compile(r"\b\d\.\de[-+]\d\d\b|\b\d+\.\d x")


def sessions(page):
    """(command, what is shown of its output) in the console and shell blocks of ``page``, one command each."""
    found = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGES[page].read_text(), re.S | re.M):
        if language == "console":
            typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
        elif language in ("sh", "bash", "shell"):
            typed = [(line, "") for line in block.splitlines() if line and not line.startswith("#")]
        else:
            continue
        for line, shown in typed:
            *first, last = (part.strip() for part in re.split(r" && | \|\| exit", line.partition(" #")[0]) if part)
            found += [(part, "") for part in first] + [(last.removeprefix("exec "), shown.strip())]
    return found


def prints(shown, out):
    """Whether ``out`` is what is ``shown``, as doctest compares it: ``...`` is anything, white space is one space."""
    shown, out = (MEASURED.sub("#", text) for text in (shown, out))
    return doctest.OutputChecker().check_output(shown, out, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
