"""From what a person typed (file, prefix, folder, tarball) to the one file to read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from porter.errors import CheckpointError
from porter.loaders import protos
from porter.loaders.table import FOOTER_SIZE, is_table
from porter.loaders.weights import Weights

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK"


class Source(NamedTuple):
    """What to read: ``kind`` is ``bundle`` (``path`` is then the prefix), ``graphdef`` or ``archive``."""

    kind: str
    path: Path


def locate(path: Path, weights: Weights = "auto") -> Source:
    """Find what ``path`` stands for.

    ``path`` is a V2 checkpoint's prefix, its ``.index`` or a data shard, a folder holding one (with or
    without a usable ``checkpoint`` file), a released tarball's folder (``ema/`` wins over ``pristine/``
    unless ``weights`` is ``raw``), a frozen ``.pb`` or a ``.tgz``. Raises CheckpointError otherwise.
    """
    if path.is_dir():
        return _in_folder(path, weights)
    if path.is_file():
        return _from_file(path)
    if path.with_name(path.name + ".index").is_file():
        return Source("bundle", path)
    raise CheckpointError(f"{path}: no such file or folder, and no checkpoint of that prefix (no {path.name}.index)")


def _from_file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(2)
            file.seek(max(0, path.stat().st_size - FOOTER_SIZE))
            tail = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if head == GZIP_MAGIC:
        return Source("archive", path)
    if head == ZIP_MAGIC:
        raise CheckpointError(f"{path}: a zip archive (a PyTorch or Keras file?), not a TensorFlow checkpoint")
    if path.name.endswith(".index"):
        return Source("bundle", path.with_suffix(""))
    shard = re.fullmatch(r"(.+)\.(data-\d{5}-of-\d{5}|meta)", path.name)
    if shard and path.with_name(shard[1] + ".index").is_file():
        return Source("bundle", path.with_name(shard[1]))
    if is_table(tail):
        raise CheckpointError(f"{path}: a V1 checkpoint or a renamed .index; only V2 checkpoints can be read")
    if path.name == "checkpoint":
        return _in_folder(path.parent, "auto")
    return Source("graphdef", path)


def _in_folder(folder: Path, weights: Weights) -> Source:
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if prefixes:
        return Source("bundle", _named_by_state(folder, prefixes) or max(prefixes, key=_step))
    order = ("pristine", "ema") if weights == "raw" else ("ema", "pristine")
    for name in order:
        if any((folder / name).glob("*.index")):
            return _in_folder(folder / name, weights)
    graphs = sorted(folder.glob("*.pb"))
    if len(graphs) == 1:
        return Source("graphdef", graphs[0])
    inner = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name not in order]
    if len(inner) == 1 and not graphs:  # a tarball unpacked into a folder of its own
        return _in_folder(inner[0], weights)
    found = ", ".join(sorted(child.name for child in folder.iterdir())[:6]) or "nothing"
    raise CheckpointError(
        f"{folder}: no checkpoint in this folder (no .index, ema/, pristine/ or single .pb; found {found})"
    )


def _named_by_state(folder: Path, prefixes: list[Path]) -> Path | None:
    """The prefix that the folder's ``checkpoint`` file names; stale absolute paths count by their last part."""
    from google.protobuf import text_format

    try:
        text = (folder / "checkpoint").read_text()
        state = text_format.Parse(text, protos.CheckpointState(), allow_unknown_field=True)
    except (OSError, UnicodeDecodeError, text_format.ParseError):  # no usable file: the folder's content decides
        return None
    name = Path(state.model_checkpoint_path).name
    return next((prefix for prefix in prefixes if prefix.name == name), None)


def _step(prefix: Path) -> int:
    """The training step in a name such as ``model.ckpt-497500``; -1 where there is none."""
    number = re.search(r"-(\d+)$", prefix.name)
    return int(number[1]) if number else -1
