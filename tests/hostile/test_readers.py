"""Files that ask for more than they hold: refused with one line, in seconds, in the memory that their size allows."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile_files import MEGABYTE, graph, index_bytes, shared_prefix_table, tflite

from porter.parity.demo import demo_variables
from porter.sources import protos
from porter.sources.bundle_index import read_index
from porter.sources.bundle_writer import write_bundle

SLACK = 64 << 20  # SECURITY.md: 4 x the bytes of the source and so much more
SECONDS = 20


def inspected(source):
    """(exit code, error, peak of resident memory above an honest run's) of ``mnv3-port inspect``, a whole process."""
    code = (
        "import re, sys; from porter.commands import main; sys.argv = ['mnv3-port', 'inspect', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        "else: code = 0\n"
        "print(re.findall(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[0], code, file=sys.stderr)"
    )
    begun = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code, str(source)], capture_output=True, text=True, timeout=120)
    assert time.monotonic() - begun < SECONDS
    *said, last = ran.stderr.strip().splitlines()
    peak, code = last.split()
    return int(code), said, int(peak) << 10


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Resident memory of looking at a small honest checkpoint."""
    prefix = tmp_path_factory.mktemp("honest") / "model-1"
    write_bundle(prefix, {"a": demo_variables("small_075")["MobilenetV3/Conv/weights"]})
    code, _, peak = inspected(prefix)
    assert code in (0, 2)
    return peak


def size_of(path):
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def refused(source, honest):
    code, said, peak = inspected(source)
    assert code == 2, said
    assert len(said) == 1
    assert len(said[0]) <= 320
    assert peak - honest <= 4 * size_of(source if source.exists() else source.parent) + SLACK
    return said[0]


def test_frozen_graph_with_one_repeated_value(tmp_path, honest):
    (tmp_path / "g.pb").write_bytes(graph((1000, 1000, 1000, 1), float_val=[1.0]))
    assert "claim 4,000,000,000 bytes" in refused(tmp_path / "g.pb", honest)


@pytest.mark.parametrize("shape", [(1,) * 65, (1 << 62, 0), (1 << 62, 1 << 62), (-1, 3)])
def test_shapes_that_no_array_has(tmp_path, honest, shape):
    (tmp_path / "g.pb").write_bytes(graph(shape, float_val=[1.0]))
    assert "impossible shape" in refused(tmp_path / "g.pb", honest)


def bundle_with(tmp_path, change):
    """A bundle whose index entries ``change`` edits."""
    prefix = tmp_path / "model-1"
    write_bundle(prefix, demo_variables("small_075"))
    index = prefix.with_name("model-1.index")
    entries = dict(read_index(index).entries)
    change(entries)
    index.write_bytes(index_bytes(entries))
    return prefix


def test_entries_that_share_their_bytes(tmp_path, honest):
    """10,000 names for one tensor."""

    def change(entries):
        largest = max(entries.values(), key=lambda v: protos.BundleEntryProto.FromString(v).size)
        entries |= {b"alias/%05d" % i: largest for i in range(10_000)}

    assert "claim" in refused(bundle_with(tmp_path, change), honest)


def test_keys_that_share_a_prefix(tmp_path, honest):
    """A key of a megabyte, and 200 that differ from it in the last bytes."""

    def change(entries):
        value = entries[b"global_step"]
        entries |= {b"k" * MEGABYTE + b"%04d" % i: value for i in range(200)}

    prefix = tmp_path / "model-1"
    write_bundle(prefix, {"a": demo_variables("small_075")["MobilenetV3/Conv/weights"]})
    index = prefix.with_name("model-1.index")
    entries = dict(read_index(index).entries) | {b"global_step": b""}
    change(entries)
    index.write_bytes(index_bytes(entries, shared_prefix_table))
    assert "longer than the file allows" in refused(prefix, honest)


def test_checkpoint_file_of_spaces(tmp_path, honest):
    """100 MiB of spaces where a line is expected, and brackets in brackets."""
    folder = tmp_path / "f"
    folder.mkdir()
    write_bundle(folder / "model-1", {"a": demo_variables("small_075")["MobilenetV3/Conv/weights"]})
    for content in (b" " * (100 << 20), b"x{" * 500_000):
        (folder / "checkpoint").write_bytes(content)
        code, _, peak = inspected(folder)
        assert code in (0, 2)
        assert peak - honest < SLACK


def test_tar_member_with_a_name_of_100_mebibytes(tmp_path, honest):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * (100 << 20)))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(raw.getvalue(), 1))
    assert "a name of" in refused(tmp_path / "a.tgz", honest)


def test_keras_configuration_of_nested_lists(tmp_path, honest):
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"config": {"layers": [' + "[]," * (20 << 20) + "[]]}}")
        archive.writestr("model.weights.h5", b"")
    assert "config.json unpacks to more than" in refused(tmp_path / "m.keras", honest)


def test_file_of_gigabytes_that_is_no_graph(tmp_path, honest):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.write(b"PNG?")
        file.truncate(3 << 30)
    _, _, peak = inspected(path)
    assert peak - honest < SLACK
    path.unlink()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")])
def test_pipes_and_devices(tmp_path, honest, make):
    make(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe", honest)


def test_fifo_as_checkpoint_file(tmp_path, honest):
    write_bundle(tmp_path / "model-1", {"a": demo_variables("small_075")["MobilenetV3/Conv/weights"]})
    (tmp_path / "checkpoint").unlink()
    os.mkfifo(tmp_path / "checkpoint")
    code, _, _ = inspected(tmp_path)
    assert code in (0, 2)


def test_keras_datasets_that_were_never_written(tmp_path, honest):
    import h5py

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for number in range(40):
            values = file.create_group(f"layers/conv2d_{number}/vars")
            values.create_dataset("0", (4096, 4096), "f4", chunks=(4096, 4096))
    refused(tmp_path / "m.weights.h5", honest)


@pytest.mark.parametrize(("size", "shared"), [((20_000, 20_000), 0), ((2, 5_000), 100_000)])
def test_tflite_of_many_operators(tmp_path, honest, size, shared):
    """20,000 tensors and operators that a quadratic search would take minutes over; operators that share one list."""
    (tmp_path / "m.tflite").write_bytes(tflite(*size, shared))
    said = refused(tmp_path / "m.tflite", honest)
    assert ("vectors are shared" in said) == bool(shared), said
