"""Reader of Keras's files, without Keras: ``.weights.h5``, legacy ``.h5`` (weights or whole model) and ``.keras``.

Sources: keras/src/saving/saving_lib.py (``.keras``, ``.weights.h5``) and keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.left_over import temporary_folder
from porter.sources.bounds import allowance
from porter.sources.keras_config import MAX_CONFIG, MODELS, stored_graph, weight_paths
from porter.sources.stored_graph import StoredGraph
from porter.sources.tfjs import shard_beside
from porter.sources.variable import Contents, Variable

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_MEMBER, CONFIG_MEMBER = "model.weights.h5", "config.json"
SECONDS = 15.0  # for libhdf5 with all shards of a model, and another second per RATE bytes
RATE = 10 << 20
SHARD = re.compile(r"(.+)_\d{5}\.weights\.h5")
MOST_SHARDS = 64
SCALING = ("mean", "variance", "count")  # of a Normalization; those of a batch norm are moving


def read_keras(path: Path) -> Contents:
    """Open the Keras file ``path``, or the index of a sharded one; variables are named ``<layer>/<variable>``.

    Layers of a model in a model lie below its name. A Keras 2 ``.weights.h5`` has no layer names; its layers are
    counted per class (``conv2d_12``). Raises CheckpointError if the file is damaged or holds no weights.
    """
    if SHARD.fullmatch(path.name):
        index = SHARD.sub(r"\1.weights.json", path.name)
        raise CheckpointError(f"{path}: one shard of a model's weights; port all of them by their index, {index}")
    folder = temporary_folder()
    variables: dict[str, Variable] = {}
    aside: dict[str, str] = {}
    try:
        with _wrap_errors(path):
            files, config = [path], _config_beside(path)
            shards = _shards(path) if path.suffix == ".json" else [path]
            if zipfile.is_zipfile(path):
                config = json.loads(_member(path, CONFIG_MEMBER, MAX_CONFIG))
                shards = [Path(folder.name) / path.name]
                shards[0].write_bytes(_member(path, WEIGHTS_MEMBER))
            elif path.suffix == ".json":
                files += shards
            names = weight_paths(config) if config else {}
            end = time.monotonic() + SECONDS + sum(shard.stat().st_size for shard in shards) / RATE
            for number, hdf5 in enumerate(shards):
                listing = _dump(hdf5, Path(folder.name) / str(number), names, path, end)
                stored = Path(folder.name) / str(number) / "values"
                variables |= {
                    name: _variable(name, found, folder, stored, path) for name, found in listing["variables"].items()
                }
                aside |= dict.fromkeys(listing["optimizer"], "optimizer state")
                config = config or listing["config"]
                names = listing["groups"] | names  # the next shard may lack them
    except BaseException:
        folder.cleanup()
        raise
    if not variables:
        folder.cleanup()
        raise CheckpointError(f"{path}: an HDF5 file without Keras weights in it")
    known = isinstance(config, dict) and config.get("class_name") in MODELS
    scaling = [name for name in variables if name.rpartition("/")[2] in SCALING]
    aside |= dict.fromkeys(scaling, "scaling of pixels")
    weights = {name: variable for name, variable in variables.items() if name not in scaling}
    return Contents(weights, files, aside, graph=(lambda: _graph(path, config, variables)) if known else None)


def read_config(path: Path) -> Any:
    """The configuration of the model in ``path``, as plain values; None where there is none. Raises CheckpointError."""
    with _wrap_errors(path), temporary_folder() as folder:
        if zipfile.is_zipfile(path):
            return json.loads(_member(path, CONFIG_MEMBER, MAX_CONFIG))
        if path.suffix == ".json":
            return None
        return _config_beside(path) or _dump(path, Path(folder) / "0", {}, path, time.monotonic() + SECONDS)["config"]


def _config_beside(path: Path) -> Any:
    """The configuration in a file beside weights: of an unzipped model, or what ``to_json`` gave; None without one."""
    stem = path.name.removesuffix(path.suffix).removesuffix(".weights")
    beside = path.with_name(CONFIG_MEMBER if path.name == WEIGHTS_MEMBER else f"{stem}.json")
    if path.suffix not in (".h5", ".json") or beside == path or not beside.is_file():
        return None
    if beside.stat().st_size > MAX_CONFIG:
        raise CheckpointError(
            f"{beside}: a configuration of {beside.stat().st_size:,} bytes; larger than any MobileNetV3's"
        )
    config = json.loads(beside.read_bytes())
    return config if isinstance(config, dict) and config.get("class_name") in MODELS else None


def _shards(path: Path) -> list[Path]:
    """The files that the index of a sharded model names, which lie beside it."""
    if path.stat().st_size > MAX_CONFIG:
        raise CheckpointError(f"{path}: an index of {path.stat().st_size:,} bytes; larger than any MobileNetV3's")
    found: dict[str, None] = {}
    for named in json.loads(path.read_bytes())["weight_map"].values():
        found |= dict.fromkeys([named] if isinstance(named, str) else named)
    if len(found) > MOST_SHARDS:
        raise CheckpointError(f"{path}: names {len(found)} shards; a MobileNetV3 has a few megabytes")
    return [shard_beside(path, name) for name in found]


def _graph(path: Path, config: Any, variables: dict[str, Variable]) -> StoredGraph:
    with _wrap_errors(path):
        return stored_graph(config, variables)


def _dump(hdf5: Path, folder: Path, names: dict[str, list[str]], path: Path, end: float) -> Any:
    """Have porter.sources.hdf5 copy the weights in ``hdf5`` to ``folder``, in a process of its own; what it lists.

    ``end`` is when it is stopped (time.monotonic).
    """
    folder.mkdir()
    seconds = end - time.monotonic()
    command = [sys.executable, "-P", "-m", "porter.sources.hdf5", str(hdf5.absolute()), str(folder)]
    try:
        ran = subprocess.run(command, input=json.dumps(names), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: not readable: libhdf5 took too long; damaged?") from None
    if ran.returncode:
        said = ran.stderr.strip().splitlines()[-1:] if ran.returncode == 2 else []
        line = said[0] if said else f"{path}: not readable: libhdf5 failed on it (code {ran.returncode}); damaged?"
        raise CheckpointError(line.replace(str(hdf5.absolute()), str(path)))
    return json.loads((folder / "listing.json").read_text())


@contextmanager
def _wrap_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        *(OSError, EOFError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, LookupError),
        *(zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:  # what zipfile and json raise for damaged bytes
        raise CheckpointError(f"{path}: not a readable Keras file ({' '.join(str(error).split())})") from error


def _member(path: Path, name: str, most: int | None = None) -> bytes:
    """The content of a zip member. Refused if it unpacks to far more than the file."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
        limit = allowance(path.stat().st_size) if most is None else most
        with archive.open(info) as member:
            data = member.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path}: {name} unpacks to more than {limit} bytes; not a Keras model")
    return data


def _variable(
    name: str, found: dict[str, Any], folder: tempfile.TemporaryDirectory[str], stored: Path, path: Path
) -> Variable:
    """A variable whose values lie in the file ``stored`` in ``folder``, which is kept as long as it."""
    shape = tuple(found["shape"])

    def load() -> np.ndarray:
        import numpy as np

        assert folder
        values = np.fromfile(stored, found["dtype"], math.prod(shape), offset=found["start"])
        return values.reshape(shape)

    return Variable(name, shape, found["dtype"], found["stored_as"], str(path), load)
