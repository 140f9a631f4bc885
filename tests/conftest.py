"""Fixtures: what a test needs it makes; the shared checkpoints are used where they are."""

import gc
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

# Several workers beside processes of TensorFlow: threads beyond the cores would wait for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    for _threads in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(_threads, "1")

import numpy as np
import pytest

from porter.commands import main
from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.sources.bundle_writer import write_bundle

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Each collection of garbage looks through the objects of torch, TensorFlow and Keras: a tenth of the suite's time
gc.set_threshold(20_000, 20, 50)

SHARED = Path(os.environ.get("MNV3_CHECKPOINTS", Path(__file__).parents[2] / "shared" / "checkpoints"))
FOLDERS = {
    "large_075": "v3-large_224_0.75_float",
    "large_100": "v3-large_224_1.0_float",
    "large_minimal_100": "v3-large-minimalistic_224_1.0_float",
    "small_075": "v3-small_224_0.75_float",
    "small_100": "v3-small_224_1.0_float",
    "small_minimal_100": "v3-small-minimalistic_224_1.0_float",
}


# All six are compared with what the original graph recorded; of what takes longer, the quick suite runs these
QUICK = ("small_075", "large_minimal_100")
SOME = [pytest.param(v, marks=() if v in QUICK else pytest.mark.slow) for v in FOLDERS]

# (variant, layout, keep_background) of every port; the quick suite has each variant once, and two in another form
PORTED = [
    pytest.param(
        v,
        layout,
        kept,
        marks=()
        if (layout, kept) == ("timm", False) or (v in QUICK and layout == "slim" and kept)
        else pytest.mark.slow,
    )
    for v in FOLDERS
    for layout in ("timm", "slim")
    for kept in (False, True)
]

# (variant, suffix) of files of every port; the quick suite has each variant's .pth
FILES = [
    pytest.param(v, suffix, marks=() if suffix == ".pth" or v in QUICK else pytest.mark.slow)
    for v in FOLDERS
    for suffix in (".pth", ".safetensors")
]

# A shell that starts the suite in the background has SIGINT ignored, and so would the commands that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_quick_diagnosis():
    """Without parity, ``verify`` looks for causes for ten seconds. Tests that read a cause ask for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("porter.parity.verify.QUICKLY", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """What tests write need not outlive a power cut; commands that tests start and kill do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses a closed file, too
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of checkpoints written by the original TensorFlow network."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared checkpoints at {SHARED} (set MNV3_CHECKPOINTS)")
    return SHARED


@pytest.fixture(params=FOLDERS)
def released(request, shared) -> tuple[str, Path]:
    """(variant, folder) of each of the six shared checkpoints."""
    return request.param, shared / FOLDERS[request.param]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """name -> (a checkpoint and graph by the original code, unpacked; where its recorded outputs are)."""
    folders = {}

    def unpack(name) -> tuple[Path, Path]:
        source = SHARED.parent / "heads" / name
        if not source.is_dir():
            pytest.skip(f"no {source} (set MNV3_CHECKPOINTS)")
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            for path in source.iterdir():
                if path.suffix == ".gz":
                    with gzip.open(path) as packed, (folders[name] / path.stem).open("wb") as file:
                        shutil.copyfileobj(packed, file)
                elif path.suffix != ".npz":
                    shutil.copy(path, folders[name])
        return folders[name], source

    return unpack


@pytest.fixture(scope="session")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="session")
def timm():
    from porter.models.timm_import import import_timm

    try:
        return import_timm()
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """The small_075 demo checkpoint, read only by agreement."""
    return write_demo_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def tarball_folder(tf, tmp_path_factory) -> Path:
    """What a released tarball of small_075 holds, with untrained weights; read only by agreement."""
    from slim_graph import frozen

    folder = tmp_path_factory.mktemp("tarball") / "v3-small_224_0.75_float"
    (folder / "ema").mkdir(parents=True)
    variables = demo_variables("small_075")
    write_bundle(folder / "ema" / "model-497500", variables)
    graph = frozen(tf, variables)
    (folder / f"{folder.name}.pb").write_bytes(graph.SerializeToString())
    meta = tf.compat.v1.MetaGraphDef(graph_def=graph)
    (folder / "ema" / "model-497500.meta").write_bytes(meta.SerializeToString())
    return folder


@pytest.fixture
def hdf5_here(monkeypatch):
    """Read Keras's HDF5 files in this process; tests/test_keras.py has the process of its own that a user gets."""
    from porter.sources import hdf5, keras

    def dump(stored, folder, given, path, end):
        folder.mkdir()
        hdf5.dump(stored, folder, given["names"], given["averaging"])
        return json.loads((folder / "listing.json").read_text())

    monkeypatch.setattr(keras, "_dump", dump)


@pytest.fixture(scope="session")
def three_blocks_model(tmp_path_factory):
    """A small network of the user's own in PyTorch, untrained; read only by agreement."""
    from three_blocks import MAPPING, VARIANT

    import porter

    path = tmp_path_factory.mktemp("three") / "three.yaml"
    path.write_text(MAPPING)
    return porter.create_model(VARIANT, mapping=path)


@pytest.fixture(scope="session")
def three_blocks(tf, tmp_path_factory):
    """A small network of the user's own, and what TensorFlow makes of it; read only by agreement."""
    from three_blocks import write_three_blocks

    return write_three_blocks(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The prefix of a checkpoint of quantisation-aware training, read only by agreement."""
    from quantized_checkpoint import write_quantized

    return write_quantized(tmp_path_factory.mktemp("qat"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: what earlier builds left in the working tree would get into the wheel."""
    root = Path(__file__).parents[1]
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, source)
    for name in ("porter", "mappings"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> dict[str, str]:
    """The environment variables of somebody who has installed the wheel, and has nothing of this tree."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    [packages] = place.glob("lib/python*/site-packages")
    # Dependencies are shared; the .pth files among them, one of which leads to this tree, are not read
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return environment


@pytest.fixture
def server():
    """A server that ranges, lies and breaks off as its attributes say."""
    from moody_server import serving

    with serving() as server:
        yield server


@pytest.fixture
def demo_copy(tmp_path) -> Path:
    """A demo checkpoint of its own, to damage: the prefix of the bundle."""
    return write_demo_checkpoint(tmp_path) / "ema" / "model-1000"


@pytest.fixture
def make_checkpoint(tmp_path):
    """Write small_075 demo variables, changed by a function, and return the prefix."""

    def make(change=lambda variables: None, **kwargs) -> Path:
        variables = demo_variables("small_075", **kwargs)
        change(variables)
        prefix = tmp_path / "changed" / "model-1"
        prefix.parent.mkdir(exist_ok=True)
        write_bundle(prefix, variables, force=True)
        return prefix

    return make


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``mnv3-port`` in this process."""

    def run(*arguments) -> Ran:
        monkeypatch.setattr(sys, "argv", ["mnv3-port", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def endpoints(model, x) -> dict:
    """Run ``model`` on ``x`` (N, C, H, W) and return every endpoint by TensorFlow's name."""
    import torch

    from porter.models.build import capture

    found = {}
    with torch.no_grad(), capture(model, found.__setitem__):
        model(x)
    return found


@pytest.fixture
def verify_head(run, monkeypatch):
    """Verify a module of tests/head_ports.py against the ``source`` of a segmenter or detector."""
    ports = Path(__file__).parent / "head_ports.py"

    def verify(variant, source, port) -> Ran:
        monkeypatch.setenv("VARIANT", variant)
        monkeypatch.setenv("SOURCE", str(source))
        monkeypatch.delenv("MAPPING", raising=False)
        monkeypatch.syspath_prepend(str(ports.parent))
        return run("verify", source, f"{ports}:{port}", "--size", "97x65")

    return verify
