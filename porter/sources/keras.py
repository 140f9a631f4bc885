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
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.sources.bounds import allowance
from porter.sources.variable import Contents, Variable

if TYPE_CHECKING:
    import numpy as np

WEIGHTS_MEMBER, CONFIG_MEMBER = "model.weights.h5", "config.json"
MAX_CONFIG = 2 << 20  # bytes; large_100 has 200 KB; nested lists take 25 times their text in memory
SECONDS = 15.0  # for libhdf5, and another second per RATE bytes
RATE = 10 << 20


def read_keras(path: Path) -> Contents:
    """Open the Keras file ``path``; variables are named ``<layer>/<variable>``.

    A Keras 2 ``.weights.h5`` has no layer names; its layers are counted per class (``conv2d_12``). Raises
    CheckpointError if the file is damaged or holds no weights.
    """
    folder = tempfile.TemporaryDirectory(prefix="mnv3-port-")
    try:
        with _wrap_errors(path):
            hdf5, names = path, {}
            if zipfile.is_zipfile(path):
                names = _layer_names(path)
                hdf5 = Path(folder.name) / path.name
                hdf5.write_bytes(_member(path, WEIGHTS_MEMBER))
            _dump(hdf5, Path(folder.name), names, path)
            listing = json.loads((Path(folder.name) / "listing.json").read_text())
    except BaseException:
        folder.cleanup()
        raise
    variables = {name: _variable(name, found, folder, path) for name, found in listing["variables"].items()}
    if not variables:
        folder.cleanup()
        raise CheckpointError(f"{path}: an HDF5 file without Keras weights in it")
    return Contents(variables, [path], dict.fromkeys(listing["optimizer"], "optimizer state"))


def _dump(hdf5: Path, folder: Path, names: dict[str, str], path: Path) -> None:
    """Have porter.sources.hdf5 copy the weights in ``hdf5`` to ``folder``, in a process of its own."""
    seconds = SECONDS + hdf5.stat().st_size / RATE
    command = [sys.executable, "-P", "-m", "porter.sources.hdf5", str(hdf5.absolute()), str(folder)]
    try:
        ran = subprocess.run(command, input=json.dumps(names), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: not readable: libhdf5 took more than {seconds:.0f} s; damaged?") from None
    if ran.returncode:
        said = ran.stderr.strip().splitlines()[-1:] if ran.returncode == 2 else []
        line = said[0] if said else f"{path}: not readable: libhdf5 failed on it (code {ran.returncode}); damaged?"
        raise CheckpointError(line.replace(str(hdf5.absolute()), str(path)))


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


def _layer_names(path: Path) -> dict[str, str]:
    """``conv2d_3`` -> the layer's name, from the configuration in a ``.keras``; empty if there is none."""
    if not zipfile.is_zipfile(path):
        return {}
    config = json.loads(_member(path, CONFIG_MEMBER, MAX_CONFIG))
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for layer in config["config"]["layers"]:
        kind = _snake_case(layer["class_name"])
        names[f"{kind}_{counts[kind]}"] = layer.get("name") or layer["config"]["name"]
        counts[kind] += 1
    return names


def _snake_case(name: str) -> str:
    """``DepthwiseConv2D`` -> ``depthwise_conv2d``, as in keras/src/utils/naming.py."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _variable(name: str, found: dict[str, Any], folder: tempfile.TemporaryDirectory[str], path: Path) -> Variable:
    shape = tuple(found["shape"])

    def load() -> np.ndarray:
        import numpy as np

        values = np.fromfile(Path(folder.name) / "values", found["dtype"], math.prod(shape), offset=found["start"])
        return values.reshape(shape)

    return Variable(name, shape, found["dtype"], found["stored_as"], str(path), load)
