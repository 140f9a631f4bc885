"""Outputs that are links, FIFOs, devices and standard output: links stay, and what is no regular file is written through."""

import os
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from moody_server import CONTENT
from PIL import Image

from porter.atomic import write_bytes
from porter.errors import PorterError


@pytest.fixture
def artifact(demo_folder, run, tmp_path):
    assert run("convert", demo_folder, "-o", tmp_path / "a.safetensors").code == 0
    return tmp_path / "a.safetensors"


@pytest.fixture
def photos(tmp_path):
    path = tmp_path / "photos" / "n01440764" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (50, 40), "teal").save(path)
    return path.parents[1]


class Fifo:
    """A FIFO and somebody who reads it."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path, self.data = path, None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        self.data = self.path.read_bytes()

    def came(self) -> bytes:
        """What came through; the FIFO is one still."""
        assert stat.S_ISFIFO(self.path.stat().st_mode)
        self.thread.join(20)
        assert self.data is not None, "nobody wrote"
        return self.data


@pytest.mark.parametrize("force", [True, False])
def test_a_fifo(tmp_path, force):
    fifo = Fifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    write_bytes(tmp_path / "link", b"x" * 1_000_000, force)
    assert fifo.came() == b"x" * 1_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link"]


def test_a_device(tmp_path):
    master, slave = os.openpty()
    try:
        (tmp_path / "link").symlink_to(os.ttyname(slave))
        write_bytes(tmp_path / "link", b"report")
        assert os.read(master, 100) == b"report"
        assert stat.S_ISCHR((tmp_path / "link").stat().st_mode)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_link(tmp_path, there):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    place = tmp_path / "there" / "a"
    if there:
        place.write_bytes(b"old")
    (tmp_path / "there" / "second").symlink_to("a")
    link = tmp_path / "here" / "link"
    link.symlink_to("../there/second")
    if there:
        with pytest.raises(PorterError, match="exists already"):
            write_bytes(link, b"new")
        assert place.read_bytes() == b"old"
    write_bytes(link, b"new", force=there)
    assert link.is_symlink()
    assert place.read_bytes() == b"new"
    assert not place.is_symlink()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["link"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(PorterError, match="lead in a circle"):
        write_bytes(tmp_path / "a", b"", force=True)


def test_a_socket(tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        with pytest.raises(PorterError, match="is a socket"):
            write_bytes(Path("socket"), b"", force=True)


@pytest.mark.slow
def test_reports_into_fifos(run, demo_folder, artifact, photos, tmp_path):
    fifos = {name: Fifo(tmp_path / name) for name in ("junit", "parity", "guesses", "accuracy", "csv", "mapping")}
    for command in (
        ("verify", demo_folder, artifact, "--size", 33, "--junit", tmp_path / "junit", "--html", tmp_path / "parity"),
        ("predict", artifact, photos, "--html", tmp_path / "guesses"),
        (
            *("evaluate", artifact, photos, "--workers", 0),
            *("--html", tmp_path / "accuracy", "--per-class", tmp_path / "csv"),
        ),
        ("draft", demo_folder, "--to", "small_075", "-o", tmp_path / "mapping"),
    ):
        ran = run(*command)
        assert ran.code == 0, ran.err
    came = {name: fifo.came().decode() for name, fifo in fifos.items()}
    ElementTree.fromstring(came["junit"])
    for page in ("parity", "guesses", "accuracy"):
        assert came[page].rstrip().endswith("</html>")
    assert came["csv"].count("\n") > 1
    assert came["mapping"].startswith("#") or "variant:" in came["mapping"]


def test_artifacts_into_fifos_and_links(run, demo_folder, artifact, tmp_path):
    for suffix in (".safetensors", ".pth", ".onnx"):
        whole, fifo, link = (tmp_path / f"{name}{suffix}" for name in ("whole", "fifo", "link"))
        assert run("convert", demo_folder, "-o", whole).code == 0
        reader = Fifo(fifo)
        ran = run("convert", demo_folder, "-o", fifo)
        assert ran.code == 0, ran.err
        assert f"wrote     {fifo} (not a regular file)" in ran.out
        assert reader.came() == whole.read_bytes()
        link.symlink_to(f"target{suffix}")
        assert run("convert", demo_folder, "-o", link).code == 0
        assert link.is_symlink()
        assert (tmp_path / f"target{suffix}").read_bytes() == whole.read_bytes()


def test_downloads(run, server, tmp_path):
    command = ("download", "--variant", "small_075", "--url", server.url, "-o")
    fifo = Fifo(tmp_path / "fifo")
    assert run(*command, fifo.path).code == 0
    assert fifo.came() == CONTENT
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store/v3.tgz")
    server.breaks_off = True
    ran = run(*command, tmp_path / "link")
    assert f"{tmp_path / 'store' / 'v3.tgz.part'} keeps what was fetched" in ran.err
    assert run(*command, tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "v3.tgz").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fifo", "link", "store", "v3.tgz"]


def test_a_download_that_breaks_off_on_its_way_into_a_stream(run, server, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    server.breaks_off = True
    ran = run("download", "--variant", "small_075", "--url", server.url, "-o", tmp_path / "fifo")
    assert ran.code == 2
    assert ran.err.endswith("; try again\n")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_fifo_is_no_folder(run, demo_folder, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    ran = run("release", demo_folder, "--out", tmp_path / "fifo")
    assert (ran.code, "is a file" in ran.err) == (2, True)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def bash(line, *arguments):
    """Run a line of bash in which ``port`` is the command, and ``$1`` ... are ``arguments``."""
    write = "import sys; from pathlib import Path; from porter.atomic import write_bytes; print('text')\n"
    write += "write_bytes(Path(sys.argv[1]), b'report\\n', force=True)"
    functions = {"port": "-m porter", "write": f"-c {shlex.quote(write)}"}
    given = "".join(f'{name}() {{ {sys.executable} {code} "$@"; }}\n' for name, code in functions.items())
    return subprocess.run(["bash", "-c", given + line, "bash", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_a_pipe(name):
    assert bash('echo before; write "$1"; echo after', name).stdout == "before\ntext\nreport\nafter\n"


def test_standard_output_is_a_file(tmp_path):
    """It is neither replaced nor written from its start."""
    out = tmp_path / "all.txt"
    bash('{ echo before; write /dev/stdout; echo after; } > "$1"', out)
    assert out.read_text() == "before\ntext\nreport\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["all.txt"]


def test_another_open_file(tmp_path):
    bash('{ echo before >&7; write /dev/fd/7; echo after >&7; } 7> "$1"', tmp_path / "all.txt")
    assert (tmp_path / "all.txt").read_text() == "before\nreport\nafter\n"
    ran = bash("write /dev/fd/7")
    assert "/dev/fd/7: cannot be written: Bad file descriptor" in ran.stderr


def test_a_mapping_on_standard_output(demo_folder):
    ran = bash('port draft "$1" --to small_075; port draft "$1" --to small_075 -o -', demo_folder)
    assert ran.stdout[: len(ran.stdout) // 2] * 2 == ran.stdout
    assert ran.stderr.startswith("wrote ")


@pytest.mark.slow
def test_a_report_stands_alone_on_standard_output(demo_folder, artifact):
    ran = bash('port verify "$1" "$2" --reference "$1/expected.npz" --junit -', demo_folder, artifact)
    assert ran.returncode == 0, ran.stderr
    assert ElementTree.fromstring(ran.stdout).get("failures") == "0"
    assert "PARITY " in ran.stderr


@pytest.mark.parametrize(
    ("line", "starts", "ends"),
    [
        ("predict A B --html -", "<!doctype html>", "</html>"),
        pytest.param(
            *("evaluate A B --workers 0 --html /dev/stdout", "<!doctype html>", "</html>"), marks=pytest.mark.slow
        ),
        pytest.param("evaluate A B --workers 0 --per-class -", "class,", "", marks=pytest.mark.slow),
    ],
)
def test_pages_stand_alone_on_standard_output(artifact, photos, line, starts, ends):
    ran = bash(f"port {line.replace('A B', '$1 $2')}", artifact, photos)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(starts)
    assert ran.stdout.rstrip().endswith(ends)
    assert "%" in ran.stderr


@pytest.mark.parametrize(
    "options",
    ["verify A B --junit - --json", "verify A B --junit - --html /dev/stdout", "predict A B --html - --json"]
    + ["evaluate A B --per-class - --html -", "evaluate A B --html /dev/fd/1 --json"],
)
def test_two_outputs_on_standard_output(run, options):
    ran = run(*options.split())
    assert ran.code == 2
    assert "only one output can go to standard output" in ran.err


def test_nobody_reads_the_report(demo_folder):
    """As for everything else that is printed: 141, which is no verdict."""
    command = [sys.executable, "-m", "porter", "draft", str(demo_folder), "--to", "small_075", "-o", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_an_output_is_no_input(run, demo_folder, artifact, photos, tmp_path):
    """The port that was to be checked became its own report."""
    before = artifact.read_bytes()
    link = tmp_path / "link.pth"
    link.symlink_to(artifact)
    twice = tmp_path / "twice"
    for command in (
        ("verify", demo_folder, artifact, "--html", artifact),
        ("verify", demo_folder, artifact, "--html", link),
        ("verify", demo_folder, "--junit", twice, "--html", twice),
        ("predict", artifact, photos, "--html", artifact),
        ("evaluate", artifact, photos, "--per-class", artifact, "--force"),
        ("convert", artifact, "-o", artifact, "--force"),
    ):
        ran = run(*command)
        assert ran.code == 2
        assert "is named twice" in ran.err
    assert artifact.read_bytes() == before


COMMAND = [sys.executable, "-c", "from porter.__main__ import main; main()"]


@pytest.mark.parametrize(
    "closed", ["<&- >&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "<&-", "2>&-"))]
)
def test_closed_streams(demo_folder, tmp_path, closed):
    """The file is written, the exit code is that of the work, and no file gets what was meant for a stream."""
    out = tmp_path / "a.safetensors"
    for words, code in (
        (["convert", str(demo_folder), "-o", str(out)], 0),
        (["inspect", str(demo_folder)], 0),
        (["inspect", str(tmp_path / "nothing")], 2),
    ):
        ran = subprocess.run(["bash", "-c", f"{shlex.join([*COMMAND, *words])} {closed}"], capture_output=True)
        assert ran.returncode == code, ran.stderr
    assert out.read_bytes()[8:9] == b"{"


def test_nobody_to_tell(tmp_path, demo_folder):
    """With standard error full, bad input is bad input, and not no parity."""
    for words in (["inspect", str(tmp_path / "nothing")], ["convert", "--no-such-option"]):
        with Path("/dev/full").open("w") as full:
            assert subprocess.run([*COMMAND, *words], stderr=full).returncode == 2
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([*COMMAND, "inspect", str(demo_folder)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 2
    assert "No space left on device" in ran.stderr
