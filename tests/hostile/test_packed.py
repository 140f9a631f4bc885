"""Files that repeat or pack what they hold (TensorFlow.js, PyTorch, numpy): a megabyte that would become gigabytes."""

import json
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from porter.artifacts.artifact import load_artifact
from porter.errors import ArtifactError, CheckpointError, ParityError
from porter.parity.references.recorded import recorded
from porter.releases.folder import write_checksums
from porter.sources import open_checkpoint

MEGABYTE = 1 << 20


def tfjs(folder, paths, weights, size=MEGABYTE):
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(size))
    (folder / "model.json").write_text(json.dumps({"weightsManifest": [{"paths": paths, "weights": weights}]}))
    return folder


def weight(count, kind="float32", **quantization):
    return {"name": "w", "shape": [count], "dtype": kind} | ({"quantization": quantization} if quantization else {})


@pytest.mark.parametrize("times", [2, 1000, 400_000])
def test_a_shard_that_is_named_again(tmp_path, times):
    folder = tfjs(tmp_path / "js", ["a.bin"] * times, [weight(times * MEGABYTE // 4)])
    with pytest.raises(CheckpointError, match=f"names {times} shards, of which 1 differ"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_levels_become_numbers_in_parts(tmp_path, dtype):
    count = 8 * MEGABYTE
    folder = tfjs(tmp_path / "js", ["a.bin"], [weight(count, dtype, dtype="uint8", min=-0.5, scale=0.25)], count)
    levels = np.arange(count, dtype=np.uint64).astype(np.uint8)
    levels.tofile(folder / "a.bin")
    from porter.sources.tfjs import _manifest, _Shards, _variable

    [group] = _manifest(folder / "model.json").groups
    variable, _ = _variable(group.weights[0], _Shards([folder / "a.bin"]), 0, folder / "model.json")
    tracemalloc.start()
    values = variable.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * count + 64 * MEGABYTE
    expected = levels[: 1 << 16] * 0.25 - 0.5
    assert values.dtype == dtype
    assert np.array_equal(values[: 1 << 16], expected if dtype == "float32" else np.floor(expected + 0.5))


def test_levels_of_another_kind(tmp_path):
    folder = tfjs(tmp_path / "js", ["a.bin"], [weight(MEGABYTE, "bool", dtype="uint8", scale=1.0)])
    with pytest.raises(CheckpointError, match="is quantised"):
        open_checkpoint(folder)


def test_tensors_that_repeat_one_value(run, tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 30)}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="its tensors have 4,294,967,296 bytes"):
        load_artifact(tmp_path / "a.pth")
    ran = run("inspect", tmp_path / "a.pth")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    tied = torch.ones(1000)
    torch.save({"w": tied, "v": tied}, tmp_path / "b.pth")
    assert len(load_artifact(tmp_path / "b.pth").arrays) == 2


def test_deflated_members(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="unpacks to"):
        load_artifact(tmp_path / "b.pth")


def member(header):
    """A ``.npy`` with the bytes ``header`` for its header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


HEADERS = {
    "open bracket": b"{'descr': '<f4', 'fortran_order': False, 'shape': (((",
    "an indent": b"  {'descr':\n\t 1\n  x",
    "no dictionary": b"[]",
    "a call": b"__import__('os').system('true')",
    "a huge shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,)}",
    "an object": b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "a strange dtype": b"{'descr': [('a',)], 'fortran_order': False, 'shape': (1,)}",
    "deep": b"(" * 60_000,
    "numbers": b"{'descr': 5, 'fortran_order': False, 'shape': (1,)}",
    "overflow": b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999,)}",
    "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    "a dtype of gigabytes": b"{'descr': '|V2147483647', 'fortran_order': False, 'shape': (1,)}",
    "nul": b"{'descr': '<f4\0', 'fortran_order': False, 'shape': (1,)}",
}


@pytest.mark.parametrize("case", HEADERS)
def test_broken_headers(tmp_path, case):
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        archive.writestr("input.npy", member(HEADERS[case]))
        archive.writestr("ep/Logits.npy", member(HEADERS[case]))
    with pytest.raises(ParityError, match=r"r\.npz"):
        recorded(tmp_path / "r.npz")


@pytest.fixture(scope="module")
def released(tmp_path_factory, demo_folder):
    from porter.releases.publish import release

    folder = tmp_path_factory.mktemp("release") / "dist"
    release(demo_folder, folder, reference=str(demo_folder / "expected.npz"))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"ep/Logits": a["ep/Logits"].reshape(-1)[:1]},
        lambda a: a | {"ep/Logits": a["ep/Logits"].astype(np.longdouble)},
        lambda a: a | {"input": a["input"].astype(np.longdouble)},
        lambda a: a | {"input": np.zeros((1, 3300, 3300, 3), np.uint8)},
        lambda a: a | {"input": np.zeros((200, 224, 224, 3), np.uint8)},
    ],
)
def test_recorded_arrays_of_other_kinds(run, released, tmp_path, change):
    folder = shutil.copytree(released, tmp_path / "dist")
    with np.load(folder / "reference.npz") as file:
        arrays = change({name: file[name] for name in file.files})
    np.savez_compressed(folder / "reference.npz", **arrays)
    (folder / "SHA256SUMS").unlink()
    write_checksums(folder)
    ran = run("release", "--check", folder)
    assert ran.code == 2, ran.err
    assert "reference.npz" in ran.err
