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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from porter.errors import CheckpointError
from porter.process import temporary_folder
from porter.sources.bounds import allowance
from porter.sources.keras_config import (
    MAX_CONFIG,
    MODELS,
    averages,
    layer_variables,
    stored_graph,
    trainable,
    weight_paths,
)
from porter.sources.stored_graph import StoredGraph
from porter.sources.tfjs import shard_beside
from porter.sources.variable import Contents, Variable
from porter.sources.weights import AVERAGE_SUFFIX

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_MEMBER, CONFIG_MEMBER = "model.weights.h5", "config.json"
SECONDS = 15.0  # for libhdf5 with all shards of a model, and another second per RATE bytes
RATE = 10 << 20
ENDINGS = r"(\.weights)?\.[^.]+$"
STEP = r"-\d+$"  # of a checkpoint
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
    kept: list[Variable] = []
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
            # A class of its own need not list its layers; its variables keep the names of their places
            names = weight_paths(config) if config and "layers" in config["config"] else {}
            given = {"names": names, "averaging": averages(config, "compile_config", "optimizer")}
            end = time.monotonic() + SECONDS + sum(shard.stat().st_size for shard in shards) / RATE
            for number, hdf5 in enumerate(shards):
                listing = _dump(hdf5, Path(folder.name) / str(number), given, path, end)
                stored = Path(folder.name) / str(number) / "values"
                variables |= {
                    name: _variable(name, found, folder, stored, path) for name, found in listing["variables"].items()
                }
                kept += [_variable("", found, folder, stored, path) for found in listing["kept"]]
                aside |= dict.fromkeys(listing["optimizer"], "optimizer state")
                config = config or listing["config"]
                given["names"] = listing["groups"] | given["names"]  # the next shard may lack them
            variables |= _averages(config, variables, kept)
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
        given, end = {"names": {}, "averaging": False}, time.monotonic() + SECONDS
        if not path.is_file():  # a checkpoint's prefix
            return _config_beside(path)
        return _config_beside(path) or _dump(path, Path(folder) / "0", given, path, end)["config"]


def _config_beside(path: Path) -> Any:
    """The configuration in a file beside weights: of an unzipped model, or what ``to_json`` gave; None without one.

    A checkpoint's file, ``path`` being its prefix, may lack the step: ``ckpt.json`` for ``ckpt-1``.
    """
    names = [CONFIG_MEMBER if path.name == WEIGHTS_MEMBER else f"{re.sub(ENDINGS, '', path.name)}.json"]
    if not path.is_file():
        names = [f"{path.name}.json", f"{re.sub(STEP, '', path.name)}.json"]
    elif path.suffix not in (".h5", ".json"):
        return None
    beside = next((file for name in names if (file := path.with_name(name)) != path and file.is_file()), None)
    if beside is None:
        return None
    if beside.stat().st_size > MAX_CONFIG:
        raise CheckpointError(
            f"{beside}: a configuration of {beside.stat().st_size:,} bytes; larger than any MobileNetV3's"
        )
    try:
        config = json.loads(beside.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{beside}: not JSON ({error}); beside {path.name}, a file of this name is its model's configuration"
        ) from error
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


def by_config(
    prefix: Path, variables: dict[str, Variable]
) -> tuple[dict[str, Variable], Callable[[], StoredGraph]] | None:
    """The variables of the object-based checkpoint ``prefix`` by the names in a configuration beside it, and its graph.

    None where there is no configuration. Raises CheckpointError where one of the model's variables is not there.
    """
    with _wrap_errors(prefix):
        config = _config_beside(prefix)
        if config is None:
            return None
        names = layer_variables(config, [name.removesuffix(AVERAGE_SUFFIX) for name in variables])
        named = {}
        for name, variable in variables.items():
            raw = name.removesuffix(AVERAGE_SUFFIX)
            new = names[raw] + name.removeprefix(raw)
            named[new] = msgspec.structs.replace(variable, name=new)
        graph = stored_graph(config, named)
    missing = [name for operation in graph.layers() for name in operation.weights.values() if name not in named]
    if missing:
        raise CheckpointError(
            f"{prefix}: has no variable {missing[0]} of the model whose configuration lies beside it; delete that file"
        )
    return named, lambda: graph


def _averages(config: Any, variables: dict[str, Variable], kept: list[Variable]) -> dict[str, Variable]:
    """Averages of trainable variables, with which what the optimizer ``kept`` begins; none where shapes differ."""
    names = trainable(config, variables) if kept else []
    if [variables[name].shape for name in names] != [one.shape for one in kept[: len(names)]]:
        return {}
    named = {name + AVERAGE_SUFFIX: one for name, one in zip(names, kept, strict=False)}
    return {name: msgspec.structs.replace(one, name=name) for name, one in named.items()}


def _dump(hdf5: Path, folder: Path, given: dict[str, Any], path: Path, end: float) -> Any:
    """Have porter.sources.hdf5 copy the weights in ``hdf5`` to ``folder``, in a process of its own; what it lists.

    ``given`` are the arguments of its ``dump``; ``end`` is when it is stopped (time.monotonic).
    """
    folder.mkdir()
    seconds = end - time.monotonic()
    command = [sys.executable, "-P", "-m", "porter.sources.hdf5", str(hdf5.absolute()), str(folder)]
    try:
        ran = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=seconds)
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
