"""Partitioned variables whose slices lie: nothing may be read into memory that no slice writes."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from porter.errors import CheckpointError
from porter.parity.demo import demo_variables
from porter.sources import open_checkpoint, protos
from porter.sources.bundle import read_bundle
from porter.sources.bundle_index import read_index
from porter.sources.bundle_writer import write_bundle
from porter.sources.slices import Part, assemble, slice_key
from porter.sources.sstable_writer import table_bytes

NAME = "MobilenetV3/Conv/weights"


def sliced(prefix, slices):
    """Cut ``NAME`` of the bundle ``prefix`` into ``slices`` (start, length along the last axis), data shared."""
    index = read_index(prefix.with_name(prefix.name + ".index"))
    entries = dict(index.entries)
    whole = protos.parse(protos.BundleEntryProto, entries[NAME.encode()], prefix, NAME)
    shape = protos.shape_of(protos.parse(protos.TensorShapeProto, whole.shape, prefix, NAME))
    cut = protos.BundleEntryProto(dtype=whole.dtype, shape=whole.shape)
    with prefix.with_name(prefix.name + ".data-00000-of-00001").open("ab") as data:
        for start, length in slices:
            part = cut.slices.add()
            for side in shape[:-1]:
                part.extent.add(start=0, length=side)
            part.extent.add(start=start, length=length)
            values = np.full((*shape[:-1], length), start, np.float32).tobytes()
            proto = protos.TensorShapeProto()
            for side in (*shape[:-1], length):
                proto.dim.add(size=side)
            from porter.sources.sstable import masked_crc32c

            extents = tuple((0, side) for side in shape[:-1]) + ((start, length),)
            entries[slice_key(NAME, extents)] = protos.BundleEntryProto(
                dtype=whole.dtype,
                shape=proto.SerializeToString(),
                offset=data.tell(),
                size=len(values),
                crc32c=masked_crc32c(values),
            ).SerializeToString()
            data.write(values)
    entries[NAME.encode()] = cut.SerializeToString()
    header = protos.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    table = [(b"", header.SerializeToString()), *sorted(entries.items())]
    prefix.with_name(prefix.name + ".index").write_bytes(table_bytes(table))


@pytest.fixture
def prefix(tmp_path):
    write_bundle(tmp_path / "model-1", demo_variables("small_075"))
    return tmp_path / "model-1"


def test_honest_slices(prefix):
    sliced(prefix, [(0, 4), (4, 12)])
    values = open_checkpoint(prefix)[NAME].read()
    assert (values[..., :4] == 0).all()
    assert (values[..., 4:] == 4).all()


@pytest.mark.parametrize(
    "slices",
    [
        [(0, 8), (0, 8)],  # the count is right, half of the variable is never written
        [(0, 8), (4, 8)],
        [(8, 8), (8, 8)],
        [(0, 16), (0, 16)],
        [(0, 4), (8, 8)],
        [(0, 8), (8, 4), (4, 4)],
    ],
)
def test_slices_that_do_not_tile_are_refused(run, prefix, tmp_path, slices):
    sliced(prefix, slices)
    with pytest.raises(CheckpointError, match=rf"{NAME}: .*slices (overlap|cover)"):
        read_bundle(prefix)
    ran = run("convert", prefix, "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert not (tmp_path / "a.pth").exists()


@given(st.data())
def test_any_grid_of_slices_tiles_and_one_missing_or_doubled_does_not(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    cuts = [sorted({0, side, *data.draw(st.sets(st.integers(0, side), max_size=2))}) for side in shape]
    spans = [[slice(a, b) for a, b in itertools.pairwise(places)] for places in cuts]
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parts = [Part(where, lambda where=where: whole[where]) for where in itertools.product(*spans)]
    assert np.array_equal(assemble(parts, shape, "float32", "f")(), whole)
    if len(parts) > 1:
        one = data.draw(st.integers(0, len(parts) - 1))
        for wrong in (parts[:one] + parts[one + 1 :], [*parts, parts[one]]):
            with pytest.raises(CheckpointError):
                assemble(wrong, shape, "float32", "f")
        other = (one + 1) % len(parts)
        doubled = [parts[one] if number == other else part for number, part in enumerate(parts)]
        with pytest.raises(CheckpointError):
            assemble(doubled, shape, "float32", "f")


def test_overlapping_slices_of_any_format():
    """The same rule for the older format, whose slices are listed in each file."""
    whole = np.arange(16, dtype=np.float32)
    parts = [Part((slice(0, 8),), lambda: whole[:8])] * 2
    with pytest.raises(CheckpointError, match="overlap"):
        assemble(parts, (16,), "float32", "f")
