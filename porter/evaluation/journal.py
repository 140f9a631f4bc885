"""Finished batches on disk, so that an interrupted evaluation can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import msgspec

from porter.atomic import make_folder, sweep, write_bytes
from porter.errors import PorterError
from porter.evaluation.result import Seen

HEADER = "evaluation.json"


def read_journal(folder: Path, header: dict[str, object]) -> dict[int, list[Seen]]:
    """Batch number -> its images, from what every process of earlier runs wrote into ``folder``.

    A line that an interruption cut short does not count. ``header`` says what is evaluated; raises PorterError
    where the folder is of another evaluation or holds other files.
    """
    start = folder / HEADER
    sweep(start)
    if not start.exists():
        if folder.exists() and any(folder.iterdir()):
            raise PorterError(f"{folder}: holds other files; resume into an empty one")
        make_folder(folder)
        write_bytes(start, (json.dumps(header, indent=1) + "\n").encode(), force=True)
        return {}
    try:
        known = json.loads(start.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise PorterError(f"{start}: not readable ({error}); remove the folder to start again") from error
    if not isinstance(known, dict):
        raise PorterError(f"{start}: is no journal of an evaluation; remove the folder to start again")
    if known != header:
        changed = ", ".join(sorted(key for key in {*known, *header} if known.get(key) != header.get(key)))
        raise PorterError(f"{folder}: is of another evaluation ({changed} differ); resume into another folder")
    batches: dict[int, list[Seen]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                number, rows = msgspec.json.decode(line, type=tuple[int, list[Seen]])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # cut short, or not a batch
                continue
            if rows:
                batches[number] = rows
    return batches


def write_batch(file: TextIO, number: int, seen: list[Seen]) -> None:
    """Add a finished batch."""
    file.write("\n" + json.dumps([number, seen]))  # the newline first: an earlier run may have left half a line
    file.flush()
