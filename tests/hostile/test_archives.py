"""Archives of a megabyte that would take inodes, time or memory without end."""

import gzip
import io
import os
import tarfile
import tempfile
import time
import tracemalloc
import zipfile

import pytest

from porter.errors import CheckpointError
from porter.sources.archive import unpack
from porter.sources.bounds import MOST, Budget
from porter.sources.locate import locate


def header(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def packed(path, data):
    with gzip.open(path, "wb", 1) as file:
        file.write(data)
    return path


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Unpack: an error, in seconds and little memory, and nothing that stays."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))

    def refused(path, words):
        before = time.process_time()
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=words):
            unpack(locate(path).path, Budget(str(path)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.process_time() - before < 20
        assert peak < 4 * path.stat().st_size + (64 << 20)
        assert not list((tmp_path / "t").iterdir())

    return refused


def test_many_folders(tmp_path, refused):
    one = header("d", tarfile.DIRTYPE)
    refused(packed(tmp_path / "a.tgz", one * 100_000), f"takes more than {MOST['files']:,} files")


@pytest.mark.parametrize("most", [1000, pytest.param(MOST["files"], marks=pytest.mark.slow)])
def test_many_empty_files(tmp_path, refused, monkeypatch, most):
    monkeypatch.setitem(MOST, "files", most)
    refused(packed(tmp_path / "a.tgz", b"".join(header(f"f{n}") for n in range(MOST["files"] + 1))), "files")


@pytest.mark.slow
def test_many_members_of_a_zip(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(30_000):
            archive.writestr(f"f{number}", b"")
    with pytest.raises(CheckpointError, match="a list of members of"):
        locate(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for number in range(MOST["files"] + 1):
            archive.writestr(f"f{number}", b"")
    refused(tmp_path / "b.zip", "files")


def test_nested_folders(tmp_path, refused):
    packed(tmp_path / "a.tgz", header("/".join("d" * 40) + "/f"))
    refused(tmp_path / "a.tgz", "deep")


def test_sparse_members(tmp_path, refused):
    """1.5 GiB of holes: GNU's old form, and both kinds of pax's."""
    old = bytearray(header("f", tarfile.GNUTYPE_SPARSE))
    old[483:495] = b"%011o\0" % (3 << 29)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    refused(packed(tmp_path / "old.tgz", bytes(old) + bytes(1024)), "holes|refusing")
    for version in ("0.1", "1.0"):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("f")
            major, minor = version.split(".")
            info.pax_headers = {
                "GNU.sparse.major": major,
                "GNU.sparse.minor": minor,
                "GNU.sparse.map": "0,0",
                "GNU.sparse.name": "f",
                "GNU.sparse.size": str(3 << 29),
                "GNU.sparse.realsize": str(3 << 29),
            }
            info.size = 8 << 20
            archive.addfile(info, io.BytesIO(b"9999999\n" + b"1\n" * (4 << 20)))
        refused(packed(tmp_path / f"{version}.tgz", raw.getvalue()), "holes|refusing")


def test_a_full_disk_is_not_damage(tmp_path):
    """The limit of a file's size stands for it."""
    import resource
    import signal

    path = packed(tmp_path / "a.tgz", header("f", size=1 << 20) + bytes(1 << 20))
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            unpack(path, Budget(str(path)))
        except CheckpointError as error:
            os._exit(7 if "cannot be unpacked into" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
