"""What interruptions, races and odd places leave: all of the old, or all of the new."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from porter.atomic import atomic_write, put_folder, sweep, write_bytes
from porter.errors import PorterError
from porter.formats import open_checkpoint
from porter.formats.bundle_writer import write_bundle
from porter.jobs.demo import demo_variables, write_demo_checkpoint


def test_replaced_checkpoint_is_old_or_new_at_every_kill(tmp_path):
    """Killed while it overwrites again and again, the checkpoint is whole each time that we look."""
    write_bundle(tmp_path / "model-1", demo_variables("small_075"))
    code = (
        "import sys; from pathlib import Path\n"
        "from porter.jobs.demo import demo_variables; from porter.formats.bundle_writer import write_bundle\n"
        "sets = [demo_variables('small_075', seed=s) for s in (0, 1)]; print('ready', flush=True)\n"
        "while True:\n"
        "    for values in sets: write_bundle(Path(sys.argv[1]), values, force=True)"
    )
    sets = [demo_variables("small_075", seed=seed) for seed in (0, 1)]
    random = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model-1")], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0.01, 0.3))
        process.kill()
        process.wait()
        found = {name: variable.read() for name, variable in open_checkpoint(tmp_path / "model-1").items()}
        assert any(all(np.array_equal(found[name], values[name]) for name in values) for values in sets)
    write_bundle(tmp_path / "model-1", sets[1], force=True)
    assert len({path.name[-5:] for path in tmp_path.glob("*.data-*")}) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_export_does_not_redirect_a_training(run, tmp_path, demo_folder):
    run("convert", demo_folder, "-o", tmp_path / "a.pth")
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
    assert run("export-tf", tmp_path / "a.pth", folder).code == 0
    assert "model.ckpt-7" in (folder / "checkpoint").read_text()


def test_folders_are_exchanged(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    put_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "which").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_folders_where_none_can_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr("porter.atomic._exchange", lambda *_: False)
    test_folders_are_exchanged(tmp_path)


@pytest.mark.slow
def test_there_is_a_release_at_every_moment(tmp_path, run, demo_folder):
    options = ("--reference", demo_folder / "expected.npz", "--out", tmp_path / "dist")
    assert run("release", demo_folder, *options).code == 0
    command = [sys.executable, "-m", "porter", "release", demo_folder, "--force", *options]
    for seconds in (1.2, 1.8, 2.4):
        process = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert (tmp_path / "dist" / "SHA256SUMS").is_file()
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert run("release", "--check", tmp_path / "dist").code == 0
    assert run("release", demo_folder, "--force", *options).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["dist"]


def test_release_into_a_link_and_into_this_folder(tmp_path, run, demo_folder, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    options = ("--reference", demo_folder / "expected.npz")
    assert run("release", demo_folder, *options, "--out", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "SHA256SUMS").is_file()
    monkeypatch.chdir(tmp_path / "real")
    ran = run("release", demo_folder, *options, "--out", ".", "--force")
    assert ran.code == 2
    assert "is the folder you are in" in ran.err


def test_what_killed_runs_left_is_swept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".a.pth.{dead.pid}-00ff00ff.tmp").write_text("left")
    (tmp_path / f".a.pth.{os.getpid()}-00ff00ff.tmp").write_text("in use")
    (tmp_path / ".a.pth.notes.tmp").write_text("somebody's")
    sweep(tmp_path / "a.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".a.pth.{os.getpid()}-00ff00ff.tmp", ".a.pth.notes.tmp"]


def test_no_overwriting_in_a_race(tmp_path):
    """Another program makes the file between our look and our rename."""

    def write():
        with atomic_write(tmp_path / "a") as file:
            file.write(b"ours")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(PorterError, match="exists already"):
        write()
    assert (tmp_path / "a").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_permissions_stay(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    write_bytes(tmp_path / "a", b"new", force=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_shard_that_is_replaced_while_it_is_read(tmp_path):
    prefix = write_demo_checkpoint(tmp_path) / "ema" / "model-1000"
    opened = open_checkpoint(prefix)
    names = list(opened)
    opened[names[1]].read()
    shard = prefix.with_name("model-1000.data-00000-of-00001")
    data = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(PorterError, match="has changed while it was read"):
        opened[names[2]].read()


def test_links_and_strange_files_in_a_release(tmp_path, run, demo_folder):
    options = ("--reference", demo_folder / "expected.npz", "--out", tmp_path / "dist")
    run("release", demo_folder, *options)
    (tmp_path / "dist" / "more").symlink_to("/etc")
    ran = run("release", "--check", tmp_path / "dist")
    assert ran.code == 2
    assert "entries are not regular files" in ran.err
    (tmp_path / "dist" / "more").unlink()
    (tmp_path / "dist" / "sub").mkdir()
    (tmp_path / "dist" / "sub" / "SHA256SUMS").write_text("")
    ran = run("release", "--check", tmp_path / "dist")
    assert "sub/SHA256SUMS: not listed" in ran.err
