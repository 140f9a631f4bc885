"""What a user of the command meets: addresses wherever a file goes, closed pipes, interruptions, hints, completion."""

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest

from porter.parity.demo import write_demo_checkpoint


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder and its address."""
    (tmp_path / "www").mkdir()
    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Server, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield tmp_path / "www", f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


@pytest.fixture
def photo(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "photos" / "n01440764" / "a.png"
    path.parent.mkdir(parents=True)
    image.new("RGB", (50, 40), "teal").save(path)
    return path


@pytest.fixture
def artifact(demo_folder, run, tmp_path):
    run("convert", demo_folder, "-o", tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_addresses_wherever_a_file_goes(web, artifact, photo, run, demo_folder, tmp_path):
    folder, address = web
    url = f"{address}/a.safetensors"
    shutil.copy(artifact, folder)
    recorded = ("--reference", demo_folder / "expected.npz")
    for command in (
        ("predict", url, photo),
        ("evaluate", url, photo.parents[1], "--workers", 0),
        ("diff", url, artifact),
        ("diff", artifact, url),
        ("export-tf", url, tmp_path / "tf"),
        ("verify", demo_folder, url, *recorded),
        ("inspect", url),
    ):
        ran = run(*command)
        assert ran.code == 0, (command, ran.err)
    import porter

    assert porter.create_model("small_075", url).num_classes == 1000
    assert porter.create_model(url).num_classes == 1000


@pytest.mark.parametrize("command", ["predict", "inspect", "download"])
def test_four_ways_not_to_reach_a_server(web, run, tmp_path, photo, command, monkeypatch):
    from porter.sources import download, remote

    silent = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("S", (Server,), {"do_GET": hang, "do_HEAD": hang}))
    threading.Thread(target=silent.serve_forever, daemon=True).start()
    for address, message in (
        (f"{web[1]}/none.pth", "no such file"),
        ("http://127.0.0.1:9/none.pth", "refuses the connection"),
        ("http://no.such.host.invalid/none.pth", "does not resolve"),
        (f"http://127.0.0.1:{silent.server_port}/none.pth", "no answer within"),
    ):
        if message == "no answer within":
            for module in (remote, download):
                monkeypatch.setattr(module, "SILENCE", 0.2)
        options = {"predict": [address, photo], "inspect": [address]}
        options["download"] = ["--variant", "small_075", "--url", address, "-o", tmp_path / "x.tgz"]
        ran = run(command, *options[command])
        assert ran.code == 2
        assert message in ran.err, ran.err
        assert address in ran.err
        assert ran.err.count("\n") == 1


def hang(_handler):
    time.sleep(20)


def test_a_release_in_a_store(demo_folder, run, tmp_path, photo):
    ran = run("release", demo_folder, "--out", tmp_path / "dist", "--reference", demo_folder / "expected.npz")
    assert ran.code == 0, ran.err
    assert run("predict", tmp_path / "dist", photo).code == 0
    assert "parity    verdict: same function" in run("inspect", tmp_path / "dist").out
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "dist"), "/owner/repo", recursive=True)
    try:
        ran = run("inspect", "memory://owner/repo")
        assert ran.code == 0, ran.err
        assert "variant   small_075, 1000 classes, background dropped" in ran.out
        assert run("predict", "memory://owner/repo", photo).code == 0
    finally:
        store.rm("/owner", recursive=True)


CONTENTS = {
    "a web page": b"\n<!DOCTYPE html><html><title>Sign in</title>",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "an empty file": b"",
    "a text file": b"weights go here\n",
    "JSON": b'{"message": "Not Found"}',
}


@pytest.mark.parametrize("what", CONTENTS)
def test_content_is_recognised(run, tmp_path, what):
    (tmp_path / "model").write_bytes(CONTENTS[what])
    ran = run("inspect", tmp_path / "model")
    assert ran.code == 2
    assert f"model: {what}" in ran.err


def test_our_own_file_by_another_name(run, artifact):
    ran = run("inspect", artifact.rename(artifact.with_suffix("")))
    assert ran.code == 2
    assert "a safetensors file: name it .safetensors" in ran.err


def closed(*arguments):
    """The exit code of a command whose output nobody reads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "porter", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert "Traceback" not in said
    return process.wait(timeout=120)


def test_a_closed_pipe_is_no_verdict(demo_folder):
    assert closed("verify", demo_folder, "--reference", demo_folder / "expected.npz") == 141
    assert closed("inspect", demo_folder) == 141


@pytest.mark.slow
def test_a_closed_pipe_elsewhere(demo_folder, photo, artifact):
    assert closed("verify", demo_folder, "--reference", demo_folder / "expected.npz", "--json") == 141
    assert closed("evaluate", artifact, photo.parents[1]) == 141


def test_shell_completion():
    for shell in ("bash", "zsh", "fish"):
        ran = subprocess.run(
            [sys.executable, "-m", "porter"],
            env={**os.environ, "_MNV3_PORT_COMPLETE": f"{shell}_source"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0
        assert "_MNV3_PORT_COMPLETE" in ran.stdout
        assert "Usage:" not in ran.stdout
    words = {**os.environ, "_MNV3_PORT_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    words["COMP_WORDS"] = "mnv3-port convert --variant large_1"
    ran = subprocess.run([sys.executable, "-m", "porter"], env=words, capture_output=True, text=True)
    assert ran.stdout.split() == ["plain,large_100"]


def test_the_summary_fits_a_terminal(demo_folder, run, monkeypatch):
    from porter.report import console as consoles

    for width in (80, 60, 40):
        monkeypatch.setattr(
            consoles, "console", lambda width=width: consoles._Console(width=width, highlight=False), raising=True
        )
        monkeypatch.setattr("porter.report.verdict_table.console", consoles.console)
        ran = run("verify", demo_folder, "--reference", demo_folder / "expected.npz")
        lines = ran.out.splitlines()
        assert len(lines) == 10, ran.out
        assert lines[0].startswith("PARITY     small_075: same function")
        assert lines[2] == "closest to their limits, of 50 endpoints (-v shows all)"
        assert all(len(line) <= width for line in lines[3:9])
        assert "…" not in ran.out
        every = run("verify", demo_folder, "--reference", demo_folder / "expected.npz", "-v").out.splitlines()
        assert len(every) == 50 + 6
        assert every[3].split()[0] == "layer_1"
        assert all(len(line) <= width for line in every[2:53])


def test_suspects_are_named_in_both_tongues(demo_folder, artifact, run, tmp_path):
    from porter.artifacts.artifact import load_artifact, save_artifact

    entry, variable = "blocks.2.0.conv_dw.weight", "MobilenetV3/expanded_conv_3/depthwise/depthwise_weights"
    stored = load_artifact(artifact)
    stored.tensors[entry][0, 0, 0, 0] += 1
    save_artifact(artifact, stored, force=True)
    options = (
        "--reference",
        demo_folder / "expected.npz",
        "--junit",
        tmp_path / "j.xml",
        "--html",
        tmp_path / "r.html",
    )
    ran = run("verify", demo_folder, artifact, *options)
    assert ran.code == 1
    assert f"changed    {entry} ({variable})" in ran.out
    assert json.loads(run("verify", demo_folder, artifact, *options, "--json").out)["variables"] == {entry: variable}
    for report in ("j.xml", "r.html"):
        text = (tmp_path / report).read_text()
        assert entry in text
        assert variable in text


def test_json_has_no_nan(tmp_path, run):
    np_nan = {"v": np.array([np.nan, 1, np.inf], "f")}
    from porter.sources.bundle_writer import write_bundle

    write_bundle(tmp_path / "a-1", np_nan)
    write_bundle(tmp_path / "b-1", {"v": np.array([2, 1, 0], "f")})
    ran = run("diff", tmp_path / "a-1", tmp_path / "b-1", "--json")
    assert ran.code == 1
    assert json.loads(ran.out, parse_constant=pytest.fail)[0]["max_abs"] is None


def test_hints(run, demo_folder, tmp_path, photo, artifact):
    assert "--check writes nothing; leave out --out" in run("release", "--check", tmp_path, "--out", tmp_path / "x").err
    assert "is a file; name the folder" in run("evaluate", artifact, photo).err
    ran = run("download", "--variant", "small_075", "-o", tmp_path / "none" / "x.tgz")
    assert f"{tmp_path / 'none'}: no such folder" in ran.err
    write_demo_checkpoint(tmp_path / "out")
    assert run("demo", "--out", tmp_path / "out").code == 0
    (tmp_path / "out" / "small_075.pth").write_bytes(b"mine")
    ran = run("demo", "--out", tmp_path / "out")
    assert (ran.code, "exists already" in ran.err) == (2, True)
    (tmp_path / "c.csv").write_text("mine")
    ran = run("evaluate", artifact, photo.parents[1], "--per-class", tmp_path / "c.csv")
    assert (ran.code, (tmp_path / "c.csv").read_text()) == (2, "mine")
    assert run("evaluate", artifact, photo.parents[1], "--per-class", tmp_path / "c.csv", "--force").code == 0


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("release --check DEMO --onnx", "--onnx"),
        ("release --check DEMO --all", "--all"),
        ("release DEMO --out x --against DEMO", "--against"),
        ("release DEMO --out x --jobs 2", "--jobs"),
        ("release --all DEMO --out x --name mine", "--name"),
        ("release --all DEMO --out x --variant small_075", "--variant"),
        ("inspect ARTIFACT --weights raw", "--weights"),
        ("predict ARTIFACT PHOTO --least 0.5", "--least"),
        ("verify DEMO --images PHOTO --seed 3", "--seed"),
        ("draft DEMO --to small_075 --force", "--force"),
        ("demo --force", "--force"),
    ],
)
def test_options_that_would_do_nothing(run, demo_folder, artifact, photo, line, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"DEMO": demo_folder, "ARTIFACT": artifact, "PHOTO": photo}
    ran = run(*(given.get(word, word) for word in line.split()))
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert last.startswith((f"Error: {option} has no meaning here: ", f"Error: {option} is for the file")), ran.err
    assert not (tmp_path / "x").exists()


def test_packages_that_are_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    ran = run("verify-padding")
    assert ran.code == 2
    assert ran.err == "Error: this comparison needs TensorFlow: pip install 'mnv3-port[tensorflow]'\n"
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    from porter.errors import ParityError
    from porter.parity.references.live_tensorflow import tflite_package

    with pytest.raises(ParityError, match=r"mnv3-port\[tflite\]"):
        tflite_package()


def test_help_is_whole(run):
    said = run("--help").out
    commands = said[said.index("Commands:") :]
    assert "..." not in commands
    assert "is it the same" not in commands
    assert re.search(r"\n  verify +Compare a port of CHECKPOINT with TensorFlow", commands)


def interrupted(number, *arguments, after):
    """Send ``number`` to a command and all that it has started, once ``after`` is so; what it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "porter", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not after() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.slow
def test_interrupting_several_releases(tmp_path):
    for variant in ("small_075", "small_minimal_100"):
        write_demo_checkpoint(tmp_path / "in", variant)
    out = tmp_path / "out"
    code, said = interrupted(
        signal.SIGINT,
        *("release", "--all", tmp_path / "in", "--out", out, "--jobs", 2),
        after=lambda: len(list(out.glob(".*/*.pth"))) > 0,
    )
    assert "Traceback" not in said, said
    assert (code, said) == (130, "Interrupted\n")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_ending_an_evaluation_with_workers(photo, artifact, tmp_path, number):
    for copy in range(400):
        shutil.copy(photo, photo.with_name(f"{copy}.png"))
    code, said = interrupted(
        number,
        *("evaluate", artifact, photo.parents[1], "--workers", 2, "--batch", 2, "--resume", tmp_path / "journal"),
        after=lambda: any(p.stat().st_size > 100 for p in (tmp_path / "journal").glob("*.jsonl")),
    )
    assert "Traceback" not in said, said
    assert code == 128 + number
