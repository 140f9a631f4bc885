"""Finding the checkpoint in what a person typed, and choosing averages or raw weights."""

import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
from conftest import same_bits

from porter.errors import CheckpointError
from porter.parity.demo import write_demo_checkpoint
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle


def bundle(prefix, value=1.0):
    prefix.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(prefix, {"v": np.full(3, value, "f")}, force=True)
    return prefix


@pytest.mark.parametrize("given", ["", "ema", "ema/model-1000", "ema/model-1000.index", "ema/checkpoint", "ema/model-1000.data-00000-of-00001"])  # fmt: skip
def test_every_way_to_name_it(demo_folder, given):
    opened = open_checkpoint(demo_folder / given)
    assert opened.path == demo_folder / "ema" / "model-1000"
    assert opened.step == 1000
    assert len(opened) == 211


def test_ema_wins_over_pristine_unless_raw(tmp_path):
    bundle(tmp_path / "ema" / "model-5", 1)
    bundle(tmp_path / "pristine" / "model.ckpt-5", 2)
    for weights, value in (("auto", 1), ("ema", 1), ("raw", 2)):
        assert open_checkpoint(tmp_path, weights)["v"].read()[0] == value


def test_checkpoint_file_chooses(tmp_path):
    bundle(tmp_path / "model-9", 9)
    bundle(tmp_path / "model-5", 5)  # written last, so `checkpoint` names it
    assert open_checkpoint(tmp_path)["v"].read()[0] == 5


@pytest.mark.parametrize(
    "text", ['model_checkpoint_path: "/gone/training/model-5"', 'model_checkpoint_path: "model-7"', "]garbage[", None]
)
def test_stale_checkpoint_file(tmp_path, text):
    """A stale absolute path counts by its last part; a useless file or none: the highest step."""
    bundle(tmp_path / "model-5", 5)
    bundle(tmp_path / "model-40", 40)
    (tmp_path / "checkpoint").unlink()
    if text is not None:
        (tmp_path / "checkpoint").write_text(text)
    assert open_checkpoint(tmp_path)["v"].read()[0] == (5 if text and "model-5" in text else 40)


def test_unpacked_into_a_folder_of_its_own(tmp_path):
    bundle(tmp_path / "x" / "v3-small" / "ema" / "model-5")
    assert open_checkpoint(tmp_path / "x").step == 5


def test_nothing_there(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no checkpoint in this folder .*found notes.txt"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"a text file, no checkpoint|no weights in it"):
        open_checkpoint(tmp_path / "notes.txt")


def test_zip_is_named_as_such(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(CheckpointError, match="damaged zip archive"):
        open_checkpoint(tmp_path / "model.zip")
    torch.save({"w": torch.ones(3)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: a PyTorch file"):
        open_checkpoint(tmp_path / "model.pth")


def averaged_variables():
    return {
        "w": np.array([1], "f"), "w/ExponentialMovingAverage": np.array([2], "f"),
        "w/RMSProp": np.array([3], "f"), "only_raw": np.array([4], "f"),
    }  # fmt: skip


def test_averages(tmp_path):
    write_bundle(tmp_path / "m", averaged_variables())
    auto = open_checkpoint(tmp_path)
    assert auto["w"].read() == 2
    assert auto["w"].stored_as == "w/ExponentialMovingAverage"
    assert auto["only_raw"].read() == 4
    assert "moving averages (1 variables" in auto.weights
    assert auto.set_aside == {"w": "raw value; its moving average is used"}
    raw = open_checkpoint(tmp_path, "raw")
    assert raw["w"].read() == 1
    assert list(raw.set_aside) == ["w/ExponentialMovingAverage"]
    assert raw.weights == "as stored"


def test_raw_of_averages_alone(tmp_path):
    bundle(tmp_path / "ema" / "model-5")
    with pytest.raises(CheckpointError, match="holds only moving averages; use weights='auto'"):
        open_checkpoint(tmp_path, "raw")


def test_ema_without_averages(tmp_path):
    bundle(tmp_path / "m")
    with pytest.raises(CheckpointError, match="weights='auto'"):
        open_checkpoint(tmp_path, "ema")


def test_shared_pristine_averages_equal_ema(shared):
    folder = shared / "v3-small_224_0.75_float"
    ema, shadows, raw = (
        open_checkpoint(folder / "ema"),
        open_checkpoint(folder / "pristine"),
        open_checkpoint(folder, "raw"),
    )
    weights = [name for name in ema if name != "global_step"]
    assert all(same_bits(ema[name].read(), shadows[name].read()) for name in weights)
    assert not any(same_bits(ema[name].read(), raw[name].read()) for name in weights if "gamma" in name)


def make_tgz(path, folder):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def test_tgz(tmp_path, demo_folder):
    path = make_tgz(tmp_path / "v3.tgz", demo_folder)
    opened = open_checkpoint(path)
    plain = open_checkpoint(demo_folder)
    assert all(same_bits(opened[name].read(), plain[name].read()) for name in plain)
    assert opened.digests() == plain.digests()
    unpacked = opened.path
    assert same_bits(
        open_checkpoint(path)["global_step"].read(), plain["global_step"].read()
    )  # outlives its checkpoint
    del opened
    assert not unpacked.parent.exists()


def test_truncated_tgz(tmp_path, demo_folder):
    path = make_tgz(tmp_path / "v3.tgz", demo_folder)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"v3.tgz: damaged archive"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../escape", "/tmp/mnv3-port-escape", "ema/../../escape"])
def test_tgz_cannot_leave_its_folder(tmp_path, name):
    with tarfile.open(tmp_path / "v3.tgz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(CheckpointError, match="refusing member"):
        open_checkpoint(tmp_path / "v3.tgz")


def test_tgz_with_a_link(tmp_path):
    with tarfile.open(tmp_path / "v3.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("ema/model-1.index")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(CheckpointError, match="refusing member"):
        open_checkpoint(tmp_path / "v3.tgz")


@pytest.mark.parametrize("variant", ["small_075", "small_minimal_100", "large_100"])
def test_frozen_graph_equals_checkpoint(shared, variant):
    from conftest import FOLDERS

    folder = shared / FOLDERS[variant]
    frozen, plain = open_checkpoint(folder / f"{folder.name}.pb"), open_checkpoint(folder)
    assert set(plain) - set(frozen) == {"global_step"}
    assert all(same_bits(frozen[name].read(), plain[name].read()) for name in frozen)


@pytest.mark.tensorflow
def test_frozen_graph_with_listed_values(tf, tmp_path):
    """TensorFlow stores constants of one repeated value, and small ones, outside tensor_content."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", (1, 4, 4, 2), "x")
        weights = tf.constant(0.25, shape=(1, 1, 2, 3), name="conv/weights")
        tf.nn.bias_add(tf.nn.conv2d(x, weights, 1, "SAME"), tf.constant([1.0, 2.0, 3.0], name="conv/biases"))
        (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    opened = open_checkpoint(tmp_path / "g.pb")
    assert opened["conv/weights"].read().tolist() == np.full((1, 1, 2, 3), 0.25).tolist()
    assert opened["conv/biases"].read().tolist() == [1, 2, 3]


def test_folder_with_one_frozen_graph(shared, tmp_path):
    shutil.copy(shared / "v3-small_224_0.75_float" / "v3-small_224_0.75_float.pb", tmp_path)
    assert open_checkpoint(tmp_path).format == "graphdef"


def test_demo_is_the_same_every_time(tmp_path, demo_folder):
    again = write_demo_checkpoint(tmp_path)
    assert open_checkpoint(again).digests() == open_checkpoint(demo_folder).digests()
