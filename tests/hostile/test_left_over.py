"""What a killed run leaves: no process, no folder for good, nothing that the next run stumbles over."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from porter.errors import PorterError
from porter.evaluation.journal import read_journal
from porter.process import temporary_folder
from porter.sources.download import DownloadError, _only_writer, download

POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from porter.releases.batch import _end_quietly
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_end_quietly, initargs=(os.getpid(),)) as pool:
        running = pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def marked(marker):
    """Processes with ``marker`` in their environment, and what they run."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        try:
            with open(f"/proc/{name}/environ", "rb") as environ, open(f"/proc/{name}/cmdline", "rb") as line:  # noqa: PTH123
                if marker.encode() in environ.read():
                    found[int(name)] = line.read()
        except (OSError, ValueError):
            continue
    return found


def waited(condition, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_pool_ends_with_its_parent(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    marker = f"MNV3_MARK={tmp_path}"
    environment = {**os.environ, "MNV3_MARK": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "pool.py")], env=environment)
    try:
        assert waited(lambda: any(b"spawn_main" in line for line in marked(marker).values()))
        parent.kill()
        parent.wait()
        assert waited(lambda: not marked(marker)), marked(marker)
    finally:
        for process in marked(marker):
            os.kill(process, signal.SIGKILL)


def test_folders_of_processes_that_have_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"mnv3-port-{ended.pid}-abc", f"mnv3-port-{os.getppid()}-abc", "mnv3-port-x", "other"):
        (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / f"mnv3-port-{ended.pid}-link").symlink_to(tmp_path / "other")
    with temporary_folder() as folder:
        left = {path.name for path in tmp_path.iterdir()}
        assert f"mnv3-port-{ended.pid}-abc" not in left
        assert {f"mnv3-port-{os.getppid()}-abc", "mnv3-port-x", "other", os.path.basename(folder)} <= left  # noqa: PTH119
        assert (tmp_path / "other" / "inner").is_dir()


def test_one_writer_of_a_download(tmp_path):
    part = tmp_path / "a.tgz.part"
    with _only_writer(part):
        part.write_bytes(b"half")
        with pytest.raises(DownloadError, match="another process fetches it"):
            download("http://127.0.0.1:1/a.tgz", tmp_path / "a.tgz")
        assert part.read_bytes() == b"half"
    with _only_writer(part):
        part.write_bytes(b"")
    assert not part.exists()


def test_journals(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / "j"
    folder.mkdir()
    (folder / f".evaluation.json.{ended.pid}-00000000.tmp").write_text("{")
    assert read_journal(folder, {"a": 1}) == {}
    (folder / "0.jsonl").write_bytes(b"\xff\xfe\n[1, [[3, [0], [3]]]]\n" + b"[" * 100_000)
    assert list(read_journal(folder, {"a": 1})) == [1]
    for content in (b"\xff\xfe", b"[" * 100_000):
        (folder / "evaluation.json").write_bytes(content)
        with pytest.raises(PorterError, match="not readable"):
            read_journal(folder, {"a": 1})


@pytest.mark.parametrize(
    "line",
    ["[999, [[0, [0], [0]]]]", "[0, [[5, [0], [0]]]]", "[0, [[0, [], [1]]]]", "[-1, [[0, [0], [0]]]]", "[0, []]"],
)
def test_a_journal_with_other_batches(run, demo_folder, tmp_path, line):
    """What does not belong to this evaluation does not count."""
    from PIL import Image

    (tmp_path / "i").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "i" / "n01440764.png")
    command = ["evaluate", demo_folder, tmp_path / "i", "--workers", "0", "--resume", tmp_path / "j", "--json"]
    first = run(*command)
    assert first.code == 0
    (tmp_path / "j" / "0.jsonl").write_text(line)
    again = run(*command)
    assert again.code == 0, again.err
    assert first.out.split('"run"')[0] == again.out.split('"run"')[0]
