"""A short seeded fuzz of every reader; scripts/fuzz_readers.py runs it for long."""

import json
import tarfile
import warnings

import fuzzing
import numpy as np
import pytest

from porter.artifacts.artifact import load_artifact
from porter.errors import ArtifactError, CheckpointError
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle
from porter.sources.slices import Part, assemble
from porter.sources.tfjs_graph import read_topology


@pytest.mark.parametrize("inputs", [75, pytest.param(600, marks=pytest.mark.slow)])
def test_mutants_are_refused_or_read(tmp_path, inputs):
    seeds, work = tmp_path / "seeds", tmp_path / "work"
    seeds.mkdir()
    work.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.load and tarfile warn about what they meet
        counts = {t.name: fuzzing.fuzz(t, work, inputs=inputs, seed=0) for t in fuzzing.targets(seeds)}
    assert all(count["refused"] for count in counts.values()), counts
    assert sum(counts[".weights.h5"].values()) == inputs // fuzzing.HDF5_SHARE


@pytest.mark.parametrize("data", [b"\x80\x02.", b"\x80\x02}q\x00u.", b"", b"PK\x03\x04"])
def test_finding_unpickler_fails_in_any_way(tmp_path, data):
    """IndexError and AttributeError came out of torch.load."""
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ArtifactError, match="not a readable PyTorch weights file"):
        load_artifact(tmp_path / "x.pth")


def test_finding_time_out_of_range_in_a_tarball(tmp_path):
    """OverflowError came out of tarfile's extraction; only content is taken now."""
    prefix = tmp_path / "ema" / "model-1"
    prefix.parent.mkdir()
    write_bundle(prefix, {"v": np.ones(3, "f")})
    with tarfile.open(tmp_path / "x.tgz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for path in prefix.parent.iterdir():
            member = archive.gettarinfo(path, f"v3/ema/{path.name}")
            member.mtime = 2**62
            with path.open("rb") as file:
                archive.addfile(member, file)
    assert open_checkpoint(tmp_path / "x.tgz")["v"].read().tolist() == [1, 1, 1]


def test_finding_sliced_variable_of_unknown_dtype():
    read = assemble(
        [Part((slice(start, start + 1),), lambda: None) for start in range(2)], (2,), "dtype 0", "f: tensor t"
    )
    with pytest.raises(CheckpointError, match="f: tensor t: dtype 0 values cannot be read"):
        read()


def test_finding_sum_of_nodes_that_are_missing():
    """KeyError came out of a graph whose sum takes a node that the file does not have."""
    for inputs in (["x", "y"], ["x", "image"], ["image", "x"]):
        nodes = [
            {"name": "image", "op": "Placeholder", "attr": {}},
            {"name": "sum", "op": "AddV2", "input": inputs},
        ]
        graph = read_topology(json.dumps(nodes).encode(), ("sum",), {}, "model.json")
        assert graph.operations["sum"].inputs == tuple(name for name in inputs if name == "image")
