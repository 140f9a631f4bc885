"""What interruptions, races and odd places leave: all of the old, or all of the new."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from porter.atomic import atomic_write, put_folder, sweep, write_bytes
from porter.errors import PorterError
from porter.parity.demo import write_demo_checkpoint
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle


def test_replaced_checkpoint_is_old_or_new_at_every_kill(tmp_path):
    """Killed while it overwrites again and again, the checkpoint is whole each time that we look."""
    made = "[{f'v{n}': np.full((400, 50), seed + n, 'f') for n in range(100)} for seed in (0, 1)]"
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from porter.sources.bundle_writer import write_bundle\n"
        f"sets = {made}; print('ready', flush=True)\n"
        "while True:\n"
        "    for values in sets: write_bundle(Path(sys.argv[1]), values, force=True)"
    )
    sets = eval(made)
    write_bundle(tmp_path / "model-1", sets[0])
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
    assert run("release", demo_folder, *options, "--out", tmp_path / "link", "--force").code == 0
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
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


# Every output of every command. `none` does not exist: whoever opens the source first complains of that
OUTPUTS = [
    *(
        "convert none -o OUT.pth",
        "convert none none2 -o FOLDER",
        "draft none --to small_075 -o OUT",
        "export-tf none FOLDER",
    ),
    *("verify none --junit OUT", "verify none none.pth --html OUT", "verify none --markdown OUT"),
    *("predict none PHOTO --html OUT", "predict none PHOTO -o FOLDER"),
    *("evaluate none none --html OUT", "evaluate none none --per-class OUT", "evaluate none none --resume FOLDER"),
    *("release none --out FOLDER", "release --all none --out FOLDER"),
    *("release --check none --junit OUT", "release --check none --markdown OUT"),
    *("demo --out FOLDER", "download --variant small_075 --url http://127.0.0.1:9/none -o OUT"),
]


@pytest.mark.parametrize("command", OUTPUTS)
def test_outputs_are_checked_before_any_work(run, tmp_path, command):
    """A file needs its folder; a folder is made, but not below a file."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "file").write_text("mine")
    known = {"OUT": tmp_path / "missing" / "x", "FOLDER": tmp_path / "file" / "x", "PHOTO": tmp_path / "photo.png"}
    ran = run(*(re.sub("|".join(known), lambda found: str(known[found[0]]), word) for word in command.split()))
    assert ran.code == 2
    wanted = f"{tmp_path}/missing: no such folder; make it first"
    if "FOLDER" in command:
        wanted = f"{tmp_path}/file: is a file; name a folder"
    assert ran.err == f"Error: {wanted}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photo.png"]


def test_the_outputs_above_are_all_that_there_are():
    """Options that take ``-`` for standard output are outputs; none is missing above."""
    from porter.commands import cli
    from porter.commands.options import OUTPUT

    for name, command in cli.commands.items():
        for option in command.params:
            if option.type is OUTPUT:
                assert any(line.startswith(name) and {*option.opts} & {*line.split()} for line in OUTPUTS), (
                    name,
                    option,
                )


def test_a_name_for_the_port_that_cannot_be(run, tmp_path):
    ran = run("convert", "none", "-o", tmp_path / "x.ckpt")
    assert "must end in one of" in ran.err


def test_a_folder_made_by_a_link(tmp_path, run, demo_folder):
    """A link to a folder that is not there yet."""
    (tmp_path / "link").symlink_to("real")
    run("convert", demo_folder, "-o", tmp_path / "a.safetensors")
    assert run("export-tf", tmp_path / "a.safetensors", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "checkpoint").is_file()


def test_no_folder_is_left_where_nothing_could_be_converted(run, tmp_path):
    assert run("convert", "none", "none2", "-o", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("quota", "bound", "count"),
    [("max 100000", 6, 6), ("250000 100000", 6, 3), ("50000 100000", 6, 1), ("800000 100000", 6, 6), (None, 6, 6)]
    + [(None, None, 4), ("200000 100000", None, 2), ("nonsense", None, 4)],
)
def test_cores(monkeypatch, tmp_path, quota, bound, count):
    """Those that the process is bound to; macOS has no sched_getaffinity. A container may have a smaller share."""
    from porter import process

    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(process, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    if bound:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    assert process.cores() == count


def test_commands_where_no_cores_are_bound(monkeypatch, run, demo_folder, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    photo = tmp_path / "photos" / "n01440764" / "a.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (50, 40), "teal").save(photo)
    ran = run("evaluate", demo_folder, photo.parents[1])
    assert ran.code == 0, ran.err
    (tmp_path / "sources" / "nothing").mkdir(parents=True)
    ran = run("release", "--all", tmp_path / "sources", "--out", tmp_path / "dist")
    assert "no checkpoint in this folder" in ran.err
