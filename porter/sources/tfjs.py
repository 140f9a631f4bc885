"""Reader of TensorFlow.js models: ``model.json`` and its shards, graph and layers models.

Source: tfjs-core/src/io/types.ts and io_utils.ts. Weights follow each other in the shards of their group, in the order
of the manifest. uint8 and uint16 weights are ``level * scale + min``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from porter.errors import CheckpointError
from porter.sources.bounds import check_shape
from porter.sources.content import recognised
from porter.sources.stored_graph import StoredGraph
from porter.sources.tfjs_graph import read_topology
from porter.sources.variable import Contents, FileView, Variable

if TYPE_CHECKING:
    import numpy as np

FILE = "model.json"
MAX_JSON = 4 << 20  # bytes; large_100's graph has 300 KB. A weight takes 45, and ten times that in memory
STORED = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2", "int32": "<i4", "bool": "u1"}
PART = 1 << 20  # values that are computed at once


class _Quantization(msgspec.Struct):
    dtype: str
    min: float = 0.0
    scale: float = 1.0


class _Weight(msgspec.Struct):
    name: str
    shape: list[int]
    dtype: str
    quantization: _Quantization | None = None


class _Group(msgspec.Struct):
    paths: list[str]
    weights: list[_Weight]


class _Tensor(msgspec.Struct):
    name: str = ""


class _Signature(msgspec.Struct):
    outputs: dict[str, _Tensor] = {}


class _Topology(msgspec.Struct):
    node: msgspec.Raw = msgspec.Raw()  # a graph model's


class _Model(msgspec.Struct):
    groups: list[_Group] = msgspec.field(name="weightsManifest")
    topology: _Topology | None = msgspec.field(name="modelTopology", default=None)
    signature: _Signature | None = None


def read_tfjs(path: Path) -> Contents:
    """Open the model ``path``. Raises CheckpointError if it is damaged, or a shard is missing or too short."""
    model = _manifest(path)
    files, variables, aside = [path], {}, {}
    every: dict[str, Variable] = {}
    names = [name for group in model.groups for name in group.paths]
    if len(set(names)) < len(names):  # each use would count as bytes that the files have
        raise CheckpointError(f"{path}: names {len(names)} shards, of which {len(set(names))} differ; damaged")
    for group in model.groups:
        shards = [shard_beside(path, name) for name in group.paths]
        files += shards
        view = _Shards(shards)
        at = 0
        for weight in group.weights:
            variable, size = _variable(weight, view, at, path)
            at += size
            every[weight.name] = variable
            if len(weight.shape) == 0 or weight.dtype != "float32":
                aside[weight.name] = "constant of the graph"
            else:
                variables[weight.name] = variable
        if at != view.size:
            raise CheckpointError(
                f"{path}: its weights take {at:,} bytes, the shards have {view.size:,}; fetch them again"
            )
    if not variables:
        raise CheckpointError(f"{path}: a TensorFlow.js model without weights in it")
    return Contents(variables, files, aside, graph=_graph(model, every, path))


def _graph(model: _Model, variables: dict[str, Variable], path: Path) -> Callable[[], StoredGraph] | None:
    """How to read a graph model's topology; a layers model has a Keras configuration instead."""
    nodes = bytes(model.topology.node) if model.topology else b""
    if not nodes:
        return None

    def read() -> StoredGraph:
        outputs = model.signature.outputs.values() if model.signature else ()
        return read_topology(nodes, tuple(sorted(o.name for o in outputs)), variables, str(path))

    return read


def _manifest(path: Path) -> _Model:
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: JSON of {path.stat().st_size:,} bytes; larger than any MobileNetV3's")
        return msgspec.json.decode(path.read_bytes(), type=_Model)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = recognised(path) or "not JSON"
        raise CheckpointError(f"{path}: {what}; a TensorFlow.js model has a weightsManifest ({error})") from error


def shard_beside(path: Path, name: str) -> Path:
    """The file ``name`` beside ``path``; any other place is refused."""
    if not name or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{path}: names the shard {name[:60]!r}, which is not a plain name of a file beside it")
    shard = path.with_name(name)
    if not shard.is_file():
        raise CheckpointError(f"{shard}: no such file, a shard of {path.name}; fetch it, too")
    return shard


class _Shards:
    """Files, concatenated."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.ends = list(accumulate(path.stat().st_size for path in paths))

    @property
    def size(self) -> int:
        """Total bytes."""
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``."""
        parts = []
        for path, end, begin in zip(self.paths, self.ends, [0, *self.ends], strict=False):
            low, high = max(start, begin), min(stop, end)
            if low < high:
                parts.append(bytes(FileView(path)[low - begin : high - begin]))
        return b"".join(parts)


def _variable(weight: _Weight, view: _Shards, at: int, path: Path) -> tuple[Variable, int]:
    """The variable that begins at byte ``at``, and its size in bytes."""
    what = f"{path}: tensor {weight.name}"
    shape = check_shape(tuple(weight.shape), what)
    quantization = weight.quantization
    stored = quantization.dtype if quantization else weight.dtype
    if stored not in STORED:
        raise CheckpointError(f"{what}: {stored[:40]!r} values cannot be read")
    if quantization and weight.dtype not in ("float32", "int32"):
        raise CheckpointError(f"{what}: is quantised, and {weight.dtype[:40]!r} values are not")
    if quantization and not (math.isfinite(quantization.min) and math.isfinite(quantization.scale)):
        raise CheckpointError(f"{what}: is quantised with an infinite scale; damaged")
    size = math.prod(shape) * int(STORED[stored][-1])
    if at + size > view.size:
        raise CheckpointError(f"{what}: ends at byte {at + size:,}, the shards have {view.size:,}; fetch them again")

    def load() -> np.ndarray:
        import numpy as np

        if quantization is None or stored == "float16":
            values = np.frombuffer(view.read(at, at + size), STORED[stored]).reshape(shape)
            return np.asarray(values, "float32" if weight.dtype == "float32" else None)
        found, item = np.empty(math.prod(shape), weight.dtype), int(STORED[stored][-1])
        for start in range(0, found.size, PART):  # in float64, as JavaScript does, which is eight times the bytes
            stop = min(start + PART, found.size)
            levels = np.frombuffer(view.read(at + start * item, at + stop * item), STORED[stored])
            part = levels * quantization.scale + quantization.min
            found[start:stop] = part if weight.dtype == "float32" else np.floor(part + 0.5)  # Math.round
        return found.reshape(shape)

    return Variable(weight.name, shape, weight.dtype, weight.name, str(path), load), size
