"""Remote and archived sources: a local HTTP server with ranges and one without, and fsspec's file systems."""

import contextlib
import functools
import http.server
import shutil
import threading
import time
import zipfile

import fsspec
import numpy as np
import pytest
from conftest import same_bits

import porter
from porter.errors import CheckpointError
from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.port import plan_port
from porter.sources import bounds, open_checkpoint, remote
from porter.sources.bundle_writer import write_bundle


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; ``ranges`` says whether to give parts of them."""

    ranges = True
    sent: list[int]

    def log_message(self, *args):
        pass

    def do_GET(self):
        wanted = self.headers.get("Range")
        file = self.translate_path(self.path)
        try:
            with open(file, "rb") as opened:  # noqa: PTH123
                data = opened.read()
        except OSError:
            self.send_error(404)
            return
        self.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            total = len(data)
            data = data[int(first) : int(last or total) + 1]
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        self.sent.append(len(data))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request, tmp_path):
    handler = type("Served", (Handler,), {"ranges": request.param, "sent": []})
    (tmp_path / "www").mkdir()
    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", tmp_path / "www", handler
    served.shutdown()


# What is read from there is test_checkpoint's, both ways; the whole suite has these so as well
either_way = pytest.mark.parametrize(
    "server", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["ranges", "no ranges"], indirect=True
)


def with_slots(folder):
    """A checkpoint of which a third is needed: slots before and after."""
    variables = demo_variables("small_075", classes=5)
    slots = {f"{name}/RMSProp{end}": value for name, value in variables.items() for end in ("", "_1")}
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder / "model-1", variables | slots)
    return folder / "model-1"


@pytest.mark.parametrize(
    ("server", "name"),
    [
        *((True, "model-1"), (False, "model-1"), (False, "model-1.index")),
        pytest.param(True, "model-1.index", marks=pytest.mark.slow),
        *(pytest.param(r, "model-1.data-00000-of-00001", marks=pytest.mark.slow) for r in (True, False)),
    ],
    indirect=["server"],
)
def test_checkpoint(server, tmp_path, run, name):
    url, www, handler = server
    local = with_slots(www)
    ran = run("convert", f"{url}/{name}", "-o", tmp_path / "far.safetensors")
    assert ran.code == 0, ran.err
    assert "small_075" in ran.out
    assert f"read      {url}/model-1" in ran.out
    run("convert", local, "-o", tmp_path / "near.safetensors")
    far, near = (porter.create_model("small_075", tmp_path / f"{x}.safetensors").state_dict() for x in ("far", "near"))
    assert all(same_bits(far[key].numpy(), value.numpy()) for key, value in near.items())
    size = (www / "model-1.data-00000-of-00001").stat().st_size
    if handler.ranges:  # a third of it, and gaps
        assert sum(handler.sent) < 0.7 * size + (www / "model-1.index").stat().st_size * 2
        assert len(handler.sent) < 80


@either_way
def test_whole_files(server, tmp_path, run):
    url, www, _ = server
    write_demo_checkpoint(www)
    shutil.make_archive(str(www / "v3"), "gztar", www, "small_075_demo")
    shutil.make_archive(str(www / "v3"), "zip", www, "small_075_demo")
    for name in ("v3.tar.gz", "v3.zip"):
        ran = run("convert", f"{url}/{name}", "-o", tmp_path / f"{name}.pth")
        assert ran.code == 0, ran.err
        assert "moving averages (ema/ folder, plain names)" in ran.out
        assert f"read      {url}/{name}/small_075_demo/ema/model-1000 (bundle)" in ran.out
    assert (tmp_path / "v3.tar.gz.pth").stat().st_size > 8_000_000


@pytest.mark.tensorflow
@either_way
def test_inspect_and_verify(server, tf, run):
    url, www, _ = server
    with_slots(www)
    assert "variant   small_075, 5 classes" in run("inspect", f"{url}/model-1").out
    assert porter.verify(f"{url}/model-1", sizes=[(64, 64)]).passed


@pytest.mark.tensorflow
@either_way
def test_what_the_graph_states(server, tarball_folder, run):
    """A .meta beside a checkpoint, and a SavedModel, say the same there as here."""
    url, www, _ = server
    shutil.copytree(tarball_folder / "ema", www / "ema")
    far, near = (plan_port(f"{place}/ema/model-497500") for place in (url, www))
    assert far.assumed == near.assumed == ("scaling",)
    assert "reference  meta graph (" in run("verify", f"{url}/ema/model-497500", "--size", "64").out


@pytest.mark.tensorflow
def test_saved_model(server, tf, tmp_path):
    url, www, _ = server
    module = tf.Module()
    module.w = tf.Variable(np.full((1, 1, 3, 4), 5, "f"), name="w")
    serve = tf.function(lambda image: tf.nn.conv2d(image, module.w, 1, "SAME"))
    signature = serve.get_concrete_function(tf.TensorSpec([None, 8, 8, 3], tf.float32))
    tf.saved_model.save(module, www / "m", signatures=signature)
    opened = open_checkpoint(f"{url}/m/saved_model.pb")
    assert opened.place == f"{url}/m/variables/variables"
    assert opened["w"].read().max() == 5
    assert "w" in opened.graph.by_weight


def test_missing(server, run, tmp_path):
    url, www, _ = server
    ran = run("convert", f"{url}/nothing", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert ran.err.startswith(f"Error: {url}/nothing: no such file")
    assert len(ran.err.splitlines()) == 1
    with_slots(www)
    (www / "model-1.data-00000-of-00001").unlink()
    ran = run("inspect", f"{url}/model-1")
    assert ran.code == 2
    assert "model-1.data-00000-of-00001: missing shard" in ran.err
    assert not (tmp_path / "a.pth").exists()


def test_no_server(run):
    ran = run("inspect", "http://127.0.0.1:9/model-1")
    assert ran.code == 2
    assert ran.err.startswith("Error: http://127.0.0.1:9/model-1: ")


def test_folder_of_a_file_system(tmp_path, run):
    folder = write_demo_checkpoint(tmp_path)
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/bucket/v3", recursive=True)
    opened = open_checkpoint("memory://bucket/v3")
    assert opened.averaged
    near = open_checkpoint(folder)
    assert all(same_bits(opened[name].read(), near[name].read()) for name in near)
    system.rm("/bucket", recursive=True)
    with pytest.raises(CheckpointError, match=r"memory:///?bucket/v3: no such file"):
        open_checkpoint("memory://bucket/v3")


def test_missing_package(run):
    ran = run("inspect", "abfs://host/model-1")
    assert ran.code == 2
    assert "Error: abfs://host/model-1: " in ran.err
    assert "install" in ran.err


def test_digests_of_a_remote_checkpoint_are_the_indexs(server):
    url, www, _ = server
    with_slots(www)
    assert set(open_checkpoint(f"{url}/model-1").digests()) == {"model-1.index"}


def hostile_zip(path, name, mode=0o100644, content=b"x"):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("name", "mode"), [("../evil", 0o100644), ("/etc/evil", 0o100644), ("link", 0o120777), ("..\\evil", 0o100644)]
)
def test_hostile_zip(tmp_path, name, mode):
    path = hostile_zip(tmp_path / "x.zip", name, mode)
    with pytest.raises(CheckpointError, match="refusing member"):
        open_checkpoint(path)
    assert not (tmp_path / "evil").exists()


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setitem(bounds.MOST, "bytes", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model-1.index", bytes(2 << 20))
    with pytest.raises(CheckpointError, match="takes more than 1,048,576 bytes"):
        open_checkpoint(tmp_path / "x.zip")


def serving(tmp_path, answer):
    """The address of a server that gives files of ``tmp_path`` for HEAD, and ``answer(handler, data)`` for GET."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            with open(self.translate_path(self.path), "rb") as file:  # noqa: PTH123
                data = file.read()
            with contextlib.suppress(OSError):  # who asked has gone
                answer(self, data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def endless(handler, data):
    """A part of one byte where one is asked for, and then what never ends."""
    wanted = handler.headers.get("Range", "")
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"{wanted.replace('=', ' ')}/{len(data)}")
    handler.end_headers()
    if wanted == "bytes=0-0":
        handler.wfile.write(b"x")
        return
    if not wanted and len(data) < 100_000:  # the index
        handler.wfile.write(data)
        return
    while True:
        handler.wfile.write(bytes(1 << 20))


def test_an_answer_without_end(tmp_path, run, monkeypatch):
    with_slots(tmp_path / "www")
    url = serving(tmp_path / "www", endless)
    ran = run("convert", f"{url}/model-1", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "sends more than the" in ran.err
    monkeypatch.setitem(bounds.MOST, "bytes", 10 << 20)
    (tmp_path / "www" / "a.tgz").write_bytes(bytes(200_000))
    ran = run("inspect", f"{url}/a.tgz")
    assert ran.code == 2
    assert "a.tgz: takes more than 10,485,760 bytes" in ran.err


def test_bytes_count_together(tmp_path, monkeypatch):
    """Those of several files, and those fetched and then unpacked."""
    monkeypatch.setitem(bounds.MOST, "bytes", 2 << 20)
    megabyte = np.random.default_rng(0).bytes(1 << 20)
    system = fsspec.filesystem("memory")
    for name in "abc":
        system.pipe(f"/budget/folder/{name}", megabyte)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x/a.pb", megabyte + bytes(1 << 10))
    system.pipe("/budget/x.zip", (tmp_path / "x.zip").read_bytes())
    for name in ("folder", "x.zip"):
        with pytest.raises(CheckpointError, match=f"memory://budget/{name}: takes more than 2,097,152 bytes"):
            open_checkpoint(f"memory://budget/{name}")


@pytest.mark.parametrize("command", ["inspect", "download"])
def test_an_answer_that_drips(tmp_path, run, monkeypatch, command):
    """A byte before every time-out, for ever."""

    def drip(handler, _data):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)

    monkeypatch.setattr("porter.sources.bounds.SILENCE", 0.2)
    (tmp_path / "a.tgz").write_bytes(b"x")
    url = f"{serving(tmp_path, drip)}/a.tgz"
    options = {"inspect": [url], "download": ["--variant", "small_075", "--url", url, "-o", tmp_path / "b.tgz"]}
    ran = run(command, *options[command])
    assert ran.code == 2
    assert "sends less than 1024 bytes a second" in ran.err


def test_an_answer_that_never_comes(tmp_path, run, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 0.2)
    (tmp_path / "a.tgz").write_bytes(b"x")
    never = threading.Event()
    ran = run("inspect", f"{serving(tmp_path, lambda *_: never.wait(30))}/a.tgz")
    never.set()
    assert ran.code == 2
    assert "a.tgz" in ran.err
