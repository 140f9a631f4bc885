"""Reader of V1 checkpoints: a table of tensor slices, in one file or several shards.

Under the empty key each file lists its tensors and slices; each slice's values are a record of their own
(tensorflow/core/util/saved_tensor_slice.proto, tensor_slice_writer.h). Blocks are snappy-compressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.sources import dtypes, protos
from porter.sources.bounds import check_shape
from porter.sources.dtypes import tensor_values
from porter.sources.slices import Extent, Part, assemble, extents_of, place, shape_of_slices, slice_key
from porter.sources.sstable import look_up
from porter.sources.variable import Contents, FileView, Variable

if TYPE_CHECKING:
    import numpy as np

META_KEY = b""  # kSavedTensorSlicesKey
SHARDED = re.compile(r"(.+)-(?:\d{5}|\?{5})-of-(\d{5})")


def read_v1(path: Path) -> Contents:
    """Open a V1 checkpoint: its file or, if sharded, ``prefix-?????-of-00003`` as TensorFlow writes it.

    Raises CheckpointError if a shard is missing or a file is damaged.
    """
    files = shard_files(path)
    found: dict[str, tuple[Any, list[Part], Path]] = {}
    for file in files:
        for tensor in _meta(file).tensor:
            name = tensor.name.decode(errors="replace")
            what, shape = f"{file}: tensor {name}", protos.shape_of(tensor.shape)
            first, parts, _ = found.setdefault(name, (tensor, [], file))
            check_shape(shape, what)
            if protos.shape_of(first.shape) != shape or first.type != tensor.type:
                raise CheckpointError(f"{what}: shards disagree about its shape or dtype, or it is impossible")
            for proto in tensor.slice:
                extents = extents_of(proto)
                where = place(extents, shape, what)
                parts.append(Part(where, _reader(file, name, extents, shape_of_slices(where), tensor.type)))
    variables = {}
    for name, (tensor, parts, file) in sorted(found.items()):
        shape, dtype = protos.shape_of(tensor.shape), dtypes.name_of(tensor.type)
        load = assemble(parts, shape, dtype, f"{file}: tensor {name}")
        variables[name] = Variable(name, shape, dtype, name, str(file), load)
    return Contents(variables, files)


def shard_files(path: Path) -> list[Path]:
    """All files of the V1 checkpoint that ``path`` names. Raises CheckpointError if one is missing."""
    sharded = SHARDED.fullmatch(path.name)
    if not sharded:
        return [path]
    count = int(sharded[2])
    files = [path.with_name(f"{sharded[1]}-{number:05d}-of-{count:05d}") for number in range(count)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing shard; fetch all {count} into the same folder")
    return files


def _meta(file: Path) -> Any:
    stored = look_up(FileView(file), META_KEY, str(file))
    record = protos.parse(protos.SavedTensorSlices, stored or b"", str(file), "the list of its tensors")
    if not record.meta.tensor:
        raise CheckpointError(f"{file}: no list of tensors in it: not a V1 checkpoint (a renamed .index?)")
    return record.meta


def _reader(
    file: Path, name: str, extents: tuple[Extent, ...], shape: tuple[int, ...], dtype: int
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        what = f"{file}: tensor {name}"
        stored = look_up(FileView(file), slice_key(name, extents), str(file))
        if stored is None:
            raise CheckpointError(f"{what}: slice {extents} is missing; the file is damaged")
        record = protos.parse(protos.SavedTensorSlices, stored, str(file), f"tensor {name}")
        return tensor_values(record.data.data, shape, dtypes.name_of(dtype), what)

    return read
