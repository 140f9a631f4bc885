"""Writer of V2 checkpoints that TensorFlow reads; porter.sources.bundle describes the format."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from porter.atomic import atomic_write, refuse_existing, sweep, write_bytes
from porter.sources import dtypes, protos
from porter.sources.bundle_index import HEADER_KEY, VERSION, shard_path
from porter.sources.sstable import masked_crc32c
from porter.sources.sstable_writer import table_bytes


def write_bundle(
    prefix: Path, variables: Mapping[str, np.ndarray], shards: int | None = None, force: bool = False
) -> None:
    """Write ``variables`` (TensorFlow's names and layouts) as the checkpoint ``prefix``, and name it in ``checkpoint``.

    The index is written last, so an interrupted write leaves no checkpoint. ``force`` replaces an older checkpoint of
    the same name: data go to shards with new names, so that renaming the index switches from all of the old to all of
    the new. Without ``force`` an existing ``checkpoint`` file stays: it says where a training run continues. Raises
    PorterError if a file exists (without ``force``) or cannot be written.
    """
    sweep(prefix, r"\.(?:index|data-\d{5}-of-\d{5})")
    index, state = prefix.with_name(prefix.name + ".index"), prefix.with_name("checkpoint")
    refuse_existing(index, force)
    old = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-?????"))
    if old and not force:
        refuse_existing(old[0], force)
    taken = {int(path.name[-5:]) for path in old if path.name[-5:].isdecimal()}
    if shards is None or shards in taken:
        shards = next(count for count in itertools.count(1) if count not in taken)
    names = sorted(variables, key=str.encode)
    entries: dict[bytes, bytes] = {}
    for shard in range(shards):
        offset = 0
        with atomic_write(shard_path(prefix, shard, shards)) as file:
            for name in names[shard::shards]:
                values = np.asarray(variables[name], order="C")  # ascontiguousarray would make scalars rank 1
                data = values.tobytes()
                shape = protos.TensorShapeProto()
                for size in values.shape:
                    shape.dim.add(size=size)
                entry = protos.BundleEntryProto(
                    dtype=dtypes.NUMBERS[values.dtype.name],
                    shape=shape.SerializeToString(),
                    shard_id=shard,
                    offset=offset,
                    size=len(data),
                    crc32c=masked_crc32c(data),
                )
                entries[name.encode()] = entry.SerializeToString(deterministic=True)
                file.write(data)
                offset += len(data)
    header = protos.BundleHeaderProto(num_shards=shards)
    header.version.producer = VERSION
    table = table_bytes([(HEADER_KEY, header.SerializeToString()), *sorted(entries.items())])
    with atomic_write(index, force) as file:
        file.write(table)
    for path in old:
        path.unlink()
    if force or not state.exists():
        text = f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
        write_bytes(state, text.encode(), force=True)
