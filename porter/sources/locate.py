"""Finding the checkpoint that a file name, prefix, folder or tarball stands for."""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from porter.errors import CheckpointError
from porter.sources.bounds import check_zip
from porter.sources.content import TORCHSCRIPT, is_torchscript
from porter.sources.keras import CONFIG_MEMBER, WEIGHTS_MEMBER
from porter.sources.sstable import FOOTER_SIZE, is_table
from porter.sources.tfjs import FILE as TFJS_FILE
from porter.sources.v1 import SHARDED
from porter.sources.weights import Weights

SAVED_MODEL = "saved_model.pb"
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK"
HDF5_MAGIC = b"\x89HDF"
MAX_STATE = 1 << 20  # bytes of a `checkpoint` file, which has a line per checkpoint of a training run
TFLITE_IDENTIFIER = b"TFL3"  # bytes 4 to 8
CORE_ML = (".mlmodel", ".mlpackage")  # the first begins as an ONNX file does


class Source(NamedTuple):
    """What to read.

    ``kind`` is ``archive`` or the name of the reader's module: ``bundle`` (``path`` is the prefix), ``v1`` (the file,
    or ``prefix-?????-of-00003``), ``graphdef``, ``keras``, ``tflite`` or ``tfjs`` (the file).
    """

    kind: str
    path: Path


def locate(path: Path, weights: Weights = "auto") -> Source:
    """Find what ``path`` stands for.

    ``path`` is a checkpoint's prefix, one of its files, a folder with one (with or without a usable ``checkpoint``
    file), a released tarball's folder (``ema/`` before ``pristine/``, unless ``weights`` is ``raw``), a SavedModel, a
    frozen ``.pb`` or a ``.tgz``. Raises CheckpointError otherwise.
    """
    if path.suffix in CORE_ML and path.exists():
        raise CheckpointError(f"{path}: a Core ML model; name the checkpoint or Keras file that it was made from")
    if path.is_dir():
        return _in_folder(path, weights)
    if path.is_file():
        return _from_file(path)
    if path.exists():
        raise CheckpointError(f"{path}: neither a file nor a folder; name one")
    if path.with_name(path.name + ".index").is_file():
        return Source("bundle", path)
    shards = path.parent.glob(f"{path.name}-?????-of-?????") if path.parent.is_dir() else ()
    sharded = path if SHARDED.fullmatch(path.name) else next((_v1_name(shard) for shard in sorted(shards)), None)
    if sharded:
        return Source("v1", sharded)
    raise CheckpointError(f"{path}: no such file or folder, and no checkpoint of that prefix (no {path.name}.index)")


def _from_file(path: Path) -> Source:
    head, tail = _ends(path)
    if head[:2] == GZIP_MAGIC or (head[:2] == ZIP_MAGIC and not _holds(path, WEIGHTS_MEMBER)):
        return Source("archive", path)
    if head[:4] == HDF5_MAGIC or head[:2] == ZIP_MAGIC:
        return Source("keras", path)
    if head[4:] == TFLITE_IDENTIFIER:
        return Source("tflite", path)
    if path.name.endswith(".index"):
        return Source("bundle", path.with_suffix(""))
    if path.name.endswith(".weights.json"):
        return Source("keras", path)
    if path.name == CONFIG_MEMBER and path.with_name(WEIGHTS_MEMBER).is_file():
        return Source("keras", path.with_name(WEIGHTS_MEMBER))
    if path.suffix == ".json":
        return Source("tfjs", path)
    companion = re.fullmatch(r"(.+)\.(data-\d{5}-of-\d{5}|meta)", path.name)
    if companion and path.with_name(companion[1] + ".index").is_file():
        return Source("bundle", path.with_name(companion[1]))
    if companion and companion[2] == "meta" and path.with_name(companion[1]).is_file():
        return _from_file(path.with_name(companion[1]))
    if is_table(tail):
        return Source("v1", _v1_name(path))
    if path.name in ("checkpoint", SAVED_MODEL):
        return _in_folder(path.parent, "auto")
    return Source("graphdef", path)


def _holds(path: Path, member: str) -> bool:
    """Whether the zip ``path`` has such a ``member``."""
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged zip archive ({error}); fetch it again") from error
    if is_torchscript(names):
        raise CheckpointError(f"{path}: {TORCHSCRIPT}")
    if any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path}: a PyTorch file, not a TensorFlow checkpoint; a state dict is read from a .pth")
    return member in names


def _ends(path: Path) -> tuple[bytes, bytes]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(max(0, path.stat().st_size - FOOTER_SIZE))
            return head, file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _v1_name(path: Path) -> Path:
    """The name of a sharded V1 checkpoint for one of its shards, as TensorFlow has it: ``prefix-?????-of-00003``."""
    sharded = SHARDED.fullmatch(path.name)
    return path.with_name(f"{sharded[1]}-?????-of-{sharded[2]}") if sharded else path


def _in_folder(folder: Path, weights: Weights) -> Source:
    if (folder / SAVED_MODEL).is_file():
        return _saved_model(folder)
    if (folder / TFJS_FILE).is_file():
        return Source("tfjs", folder / TFJS_FILE)
    if (folder / WEIGHTS_MEMBER).is_file():
        return Source("keras", folder / WEIGHTS_MEMBER)
    indices = list(folder.glob("*.weights.json"))
    if len(indices) == 1:
        return Source("keras", indices[0])
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if prefixes:
        return Source("bundle", _choose(folder, prefixes))
    order = ("pristine", "ema") if weights == "raw" else ("ema", "pristine")
    for name in order:
        if any((folder / name).glob("*.index")):
            return _in_folder(folder / name, weights)
    children = sorted(folder.iterdir())
    tables = {_v1_name(child) for child in children if child.is_file() and is_table(_ends(child)[1])}
    if tables:
        return Source("v1", _choose(folder, sorted(tables)))
    graphs = [child for child in children if child.suffix == ".pb"]
    if len(graphs) == 1:
        return Source("graphdef", graphs[0])
    models = [child for child in children if child.suffix == ".json"]
    if len(models) == 1 and not graphs:
        return Source("tfjs", models[0])
    inner = [child for child in children if child.is_dir() and child.name not in order]
    if len(inner) == 1 and not graphs:  # a tarball unpacked into a folder of its own
        return _in_folder(inner[0], weights)
    found = ", ".join(child.name for child in children[:6]) or "nothing"
    raise CheckpointError(
        f"{folder}: no checkpoint in this folder (no .index, V1 file, ema/, pristine/, SavedModel or single .pb; found "
        f"{found})"
    )


def _saved_model(folder: Path) -> Source:
    prefix = folder / "variables" / "variables"
    if not prefix.with_name("variables.index").is_file():
        raise CheckpointError(f"{folder / SAVED_MODEL}: without its variables (no variables/variables.index)")
    return Source("bundle", prefix)


def _choose(folder: Path, candidates: list[Path]) -> Path:
    """The candidate that the folder's ``checkpoint`` file names, else the one with the highest step.

    Of an absolute path in that file, which may be outdated, only the last part counts.
    """
    name = ""
    with suppress(OSError, UnicodeDecodeError):  # without a usable file the steps decide
        if (folder / "checkpoint").is_file():
            with (folder / "checkpoint").open("rb") as file:
                text = file.read(MAX_STATE).decode()
            named = re.search(r'^\s*model_checkpoint_path: *"([^"\n]*)"', text, re.MULTILINE)
            name = Path(named[1]).name if named else ""
    return next((path for path in candidates if path.name == name), max(candidates, key=lambda p: step_of(p) or -1))


def step_of(path: Path) -> int | None:
    """The training step in a name such as ``model.ckpt-497500`` or ``model.ckpt-5-?????-of-00003``, if any."""
    number = re.search(r"-(\d+)(?:-\?{5}-of-\d{5})?$", path.name)
    return int(number[1]) if number else None
