"""``mnv3-port convert``: what it writes, and that bad input leaves one line and no file."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES, FOLDERS, same_bits

import porter
from porter.artifacts.artifact import load_artifact
from porter.artifacts.metadata import Metadata
from porter.atomic import atomic_write
from porter.errors import ArtifactError, PorterError
from porter.exports.convert import convert
from porter.mapping.options import PortOptions
from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.port import plan_port
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle
from porter.sources.sstable_writer import table_bytes

STEM = "MobilenetV3/Conv/weights"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("layout", ["timm", "slim"])
def test_artifact_holds_the_checkpoint(demo_folder, tmp_path, suffix, layout):
    path, port = convert(demo_folder, tmp_path / f"a{suffix}", layout=layout)
    arrays, metadata = load_artifact(path)
    opened = open_checkpoint(demo_folder)
    assert set(arrays) == set(porter.create_model("small_075", layout=layout).state_dict())
    stem = arrays["conv_stem.weight"]
    assert same_bits(stem.transpose(2, 3, 1, 0).copy(), opened[STEM].read())
    assert isinstance(metadata, Metadata)
    assert (metadata.variant, metadata.layout, metadata.step) == ("small_075", layout, 1000)
    assert metadata.gate == (1 / 6 if layout == "timm" else 0.16667)
    assert metadata.sources == opened.digests()
    assert port.plan.num_classes == metadata.num_classes == 1000


@pytest.mark.parametrize(("released", "suffix"), FILES, indirect=["released"])
def test_fold_is_undone_bit_for_bit(released, tmp_path, suffix):
    variant, folder = released
    folded, _ = convert(folder, tmp_path / f"timm{suffix}")
    plain, _ = convert(folder, tmp_path / f"slim{suffix}", layout="slim")
    undone = porter.create_model(variant, folded, layout="slim").state_dict()
    original = load_artifact(plain).tensors
    assert all(same_bits(undone[name].numpy(), original[name].numpy()) for name in original)
    again = porter.create_model(variant, plain, layout="timm").state_dict()
    assert all(same_bits(again[name].numpy(), value.numpy()) for name, value in load_artifact(folded).tensors.items())


def test_safetensors_as_its_library_writes_it(tmp_path, demo_folder):
    from safetensors.numpy import load, save

    from porter.artifacts.artifact import Artifact, load_artifact, save_artifact

    path, _ = convert(demo_folder, tmp_path / "a.safetensors")
    odd = {
        "half": np.ones((2, 3), "f2"),
        "none": np.ones((0, 4), "f"),
        "flag": np.array(True),
        "long": np.ones(3, "i8"),
    }
    save_artifact(tmp_path / "odd.safetensors", Artifact(odd, load_artifact(path).metadata))
    for name in ("a", "odd"):
        data = (tmp_path / f"{name}.safetensors").read_bytes()
        arrays = load(data)
        library = save({entry: values.copy() for entry, values in arrays.items()})

        def parts(data):
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            return {key: one for key, one in header.items() if key != "__metadata__"}, data[8 + size :], size % 8

        assert parts(data) == parts(library)
        assert list(parts(data)[0]) == list(parts(library)[0])
    assert all(np.array_equal(arrays[entry], values) for entry, values in odd.items())


@pytest.mark.parametrize("suffix", [pytest.param(".pth", marks=pytest.mark.slow), ".safetensors"])
def test_same_input_same_bytes_in_another_process(demo_folder, tmp_path, suffix):
    first, _ = convert(demo_folder, tmp_path / f"first{suffix}")
    second = tmp_path / "elsewhere" / f"second{suffix}"
    second.parent.mkdir()
    command = [sys.executable, "-m", "porter", "convert", demo_folder / "ema", "-o", second]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "77"}, stdout=subprocess.DEVNULL)
    assert first.read_bytes() == second.read_bytes()


def test_output_of_the_command(run, demo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("convert", "--variant", "small_075", demo_folder)
    assert ran.code == 0
    assert "mapped    210 variables, none left over; 1 ignored (training step counter)" in ran.out
    assert "layout    timm: gate 0.166667, 0.16667 folded into 9 project weights" in ran.out
    assert (tmp_path / "small_075.pth").is_file()


def test_dry_run_writes_nothing(run, demo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("convert", demo_folder, "--dry-run")
    assert ran.code == 0
    assert "variant   small_075 (found from the shapes)" in ran.out
    assert "classifier.bias" in ran.out
    assert list(tmp_path.iterdir()) == []


def damage(prefix, what):
    index, data = prefix.with_name("model-1000.index"), prefix.with_name("model-1000.data-00000-of-00001")
    if what == "truncated index":
        index.write_bytes(index.read_bytes()[:-60])
    elif what == "truncated data":
        data.write_bytes(data.read_bytes()[:-100])
    elif what == "flipped byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 3] ^= 4
        data.write_bytes(content)
    elif what == "missing shard":
        data.unlink()
    elif what == "missing index":
        index.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated index", "model-1000.index: truncated or not a TensorFlow index"),
        ("truncated data", "model-1000.data-00000-of-00001: truncated: tensor"),
        ("flipped byte", "model-1000.data-00000-of-00001: tensor MobilenetV3/"),
        ("missing shard", "missing shard of model-1000.index"),
        ("missing index", "no such file or folder, and no checkpoint of that prefix"),
    ],
)
def test_damaged_checkpoint(run, demo_copy, tmp_path, what, message):
    damage(demo_copy, what)
    assert_refused(run("convert", demo_copy, "-o", tmp_path / "out.pth"), message, tmp_path)


def assert_refused(ran, message, folder):
    assert ran.code == 2
    assert ran.err.startswith("Error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert message in ran.err
    assert not [path for path in folder.iterdir() if "out" in path.name], "a file was left behind"


def test_in_the_folder_of_the_checkpoint(run, demo_folder, monkeypatch, tmp_path):
    """A bare name has no folder in it."""
    monkeypatch.chdir(demo_folder / "ema")
    [index] = Path().glob("*.index")
    ran = run("convert", index.stem, "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err


def test_timms_name_of_the_variant(run, demo_folder, tmp_path):
    timms = ("--variant", "tf_mobilenetv3_small_075")
    for command in (("inspect", demo_folder), ("convert", demo_folder, "-o", tmp_path / "a.safetensors")):
        ran = run(*command, *timms)
        assert ran.code == 0, ran.err
    assert run("export-tf", tmp_path / "a.safetensors", tmp_path / "tf", *timms).code == 0
    ran = run("convert", demo_folder, "-o", tmp_path / "b.pth", "--variant", "tf_mobilenetv3_small_100")
    assert "is a small_075 checkpoint, not tf_mobilenetv3_small_100; use --variant small_075" in ran.err
    ran = run("convert", demo_folder, "--variant", "nope")  # the whole list, not cut in its middle
    assert (ran.code, " ... " in ran.err, "small_seg" in ran.err) == (2, False, True)


def test_constants_of_a_mapping_of_a_known_variant_travel_with_the_port(demo_folder, tmp_path):
    mapping, path = tmp_path / "own.yaml", tmp_path / "a.pth"
    constants = "network: {output_stride: 16}\ndefinition: {batch_norm: {epsilon: 0.01, decay: 0.9}}"
    mapping.write_text(f"base: small_075.yaml\n{constants}\n")
    porter.convert(demo_folder, path, mapping=mapping)
    expected = porter.create_model("small_075", demo_folder, mapping=mapping).network
    assert porter.create_model(path).network == expected
    assert (expected.total_stride, expected.epsilon, expected.decay) == (16, 0.01, 0.9)


def test_an_artifact_of_a_mapping_of_ones_own(run, demo_folder, tmp_path):
    """Its variant is installed nowhere: the message asks for the file, and with it the artifact opens."""
    mapping, artifact = tmp_path / "mine.yaml", tmp_path / "mine.safetensors"
    mapping.write_text("base: small_075.yaml\nvariant: mine\n")
    assert run("convert", demo_folder, "--mapping", mapping, "-o", artifact).code == 0
    ran = run("export-tf", artifact, tmp_path / "tf")
    assert ran.code == 2
    assert ran.err.endswith("was made with a mapping file of its own, of mine, which is needed; use --mapping FILE\n")
    assert run("export-tf", artifact, tmp_path / "tf", "--mapping", mapping).code == 0


def test_bad_input(run, demo_folder, make_checkpoint, tmp_path):
    out = tmp_path / "out.pth"
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    (tmp_path / "empty").mkdir()
    raw = make_checkpoint()
    for arguments, message in (
        (["--variant", "small_100", demo_folder], "is a small_075 checkpoint, not small_100; use --variant small_075"),
        (["--mapping", tmp_path / "bad.yaml", demo_folder], "bad.yaml: not readable as YAML"),
        (["--mapping", tmp_path / "no.yaml", demo_folder], "no.yaml: No such file"),
        (["--num-classes", 10, demo_folder], "the classifier has 1000 classes without background, not 10"),
        (["--weights", "ema", raw], "no variable ends in /ExponentialMovingAverage"),
        ([tmp_path / "empty"], "no checkpoint in this folder"),
        ([tmp_path / "nowhere"], "no such file or folder"),
        ([tmp_path / "bad.yaml"], "bad.yaml"),
    ):
        assert_refused(run("convert", *arguments, "-o", out), message, tmp_path)


def test_nan_in_weights(run, make_checkpoint, tmp_path):
    ran = run("convert", make_checkpoint(lambda v: v[STEM].fill(np.nan)), "-o", tmp_path / "out.pth")
    assert_refused(ran, f"tensor {STEM}: 432 of 432 values are NaN", tmp_path)


def test_existing_output(run, demo_folder, tmp_path):
    old = tmp_path / "old.pth"
    old.write_bytes(b"precious")
    ran = run("convert", demo_folder, "-o", old)
    assert (ran.code, old.read_bytes()) == (2, b"precious")
    assert "old.pth: exists already; choose another output or use --force" in ran.err
    assert run("convert", demo_folder, "-o", old, "--force").code == 0
    assert load_artifact(old).metadata.variant == "small_075"
    ran = run("convert", demo_folder, "-o", tmp_path)
    assert ran.code == 2
    assert "is a folder" in ran.err


def test_output_that_cannot_be(run, demo_folder, tmp_path):
    ran = run("convert", demo_folder, "-o", tmp_path / "out.ckpt")
    assert_refused(ran, "must end in one of .pth, .pt, .safetensors, .onnx, .tflite", tmp_path)
    ran = run("convert", demo_folder, "-o", tmp_path / "none" / "out.pth")
    assert_refused(ran, "none: no such folder; make it first", tmp_path)
    (tmp_path / "file").write_text("")
    ran = run("convert", demo_folder, "-o", tmp_path / "file" / "out.pth")
    assert_refused(ran, "file: is a file; name a folder", tmp_path)


def as_nobody(function):
    """Run ``function`` in a child without root's rights; its exit code."""
    pid = os.fork()
    if not pid:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            os._exit(function())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def locked_folder():
    """A folder that only root may write to; pytest's own lie below one that only root may enter."""
    with tempfile.TemporaryDirectory(prefix="mnv3-port-test-") as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_read_only_folder(locked_folder):
    def write():
        try:
            with atomic_write(locked_folder / "out.pth"):
                return 1
        except PorterError as error:
            return 0 if f"{locked_folder}: is not writable" in str(error) else 2

    assert as_nobody(write) == 0
    assert list(locked_folder.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_full_disk(run, demo_folder, tmp_path, suffix):
    """A file size limit stands in for a full disk: the write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # Python ignores the signal
    try:
        ran = run("convert", demo_folder, "-o", tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_refused(ran, "cannot be written: File too large", tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_half_way(demo_folder, tmp_path, number):
    """The old artifact stays whole and no temporary file remains."""
    out = tmp_path / "out.pth"
    out.write_bytes(b"old")
    slow = "import time, torch; torch.save = lambda state, file: (file.write(b'half'), file.flush(), time.sleep(60));"
    code = f"{slow} import sys; from porter.commands import main; sys.argv[0] = 'x'; main()"
    command = [sys.executable, "-c", code, "convert", "--force", demo_folder, "-o", out]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.pth.*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.glob(".out.pth.*.tmp")), "never began to write"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "Traceback" not in err
    assert (out.read_bytes(), [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]) == (b"old", [])


def test_debug_shows_the_traceback(run, tmp_path):
    from porter.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run("convert", tmp_path / "nowhere", "--debug")
    with pytest.raises(CheckpointError):
        run("--debug", "convert", tmp_path / "nowhere")


def test_metadata_of_a_later_version(demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    state = torch.load(path, weights_only=True)
    entry = state._metadata["mnv3_port"]
    entry["json"] = json.dumps(json.loads(entry["json"]) | {"format": 99, "tool": "mnv3-port 9"})
    torch.save(state, path)
    with pytest.raises(ArtifactError, match=r"a.pth: written by a later mnv3-port \(mnv3-port 9\)"):
        load_artifact(path)


def test_artifact_of_another_variant(demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="is a small_075 artifact, not large_100"):
        porter.create_model("large_100", path)


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v == "small_075" else pytest.mark.slow) for v in FOLDERS]
)
def test_memory_stays_small(shared, variant):
    """At most 3 x the averaged weights above what the imports take, slots or not."""
    folder = shared / FOLDERS[variant]
    folder = folder / "pristine" if (folder / "pristine").is_dir() else folder
    code = f"""
import resource, torch, porter.exports.convert, porter.models.create
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
porter.exports.convert.convert({str(folder)!r}, "/dev/shm/mnv3-port-test-{os.getpid()}.pth", force=True)
print(peak() - before)
"""
    try:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        Path(f"/dev/shm/mnv3-port-test-{os.getpid()}.pth").unlink()
    port = plan_port(folder, PortOptions(variant))
    weights = sum(port.checkpoint[step.source].nbytes for step in port.plan.steps)
    assert int(ran.stdout) * 1024 <= 3 * weights


def test_threads_may_convert_side_by_side(demo_folder, tmp_path):
    threads = [threading.Thread(target=convert, args=(demo_folder, tmp_path / f"{i}.pth")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.glob("*.pth")}) == 1
    assert len(list(tmp_path.glob("*.pth"))) == 4


def test_several_at_once(tmp_path, run):
    """A training run: the same bytes as one by one, and the name of each checkpoint."""
    (tmp_path / "run").mkdir()
    for step in range(3):
        variables = demo_variables("small_075")
        variables["MobilenetV3/Conv/BatchNorm/beta"] += step
        write_bundle(tmp_path / "run" / f"model-{step}", variables)
    ran = run("convert", *sorted((tmp_path / "run").glob("*.index")), "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.out.count("wrote ") == 3
    for step in range(3):
        assert run("convert", tmp_path / "run" / f"model-{step}", "-o", tmp_path / "one.pth", "--force").code == 0
        assert (tmp_path / "out" / f"model-{step}.pth").read_bytes() == (tmp_path / "one.pth").read_bytes()
    sources = [tmp_path / "run" / f"model-{step}" for step in (0, 1)]
    assert "exists already" in run("convert", *sources, "-o", tmp_path / "out").err
    assert "need -o FOLDER" in run("convert", *sources).err
    assert "is a file" in run("convert", *sources, "-o", tmp_path / "one.pth").err
    write_bundle(tmp_path / "model-0", demo_variables("small_075"))
    ran = run("convert", sources[0], tmp_path / "model-0", "-o", tmp_path / "x")
    assert "two checkpoints would become model-0.pth" in ran.err
    assert not (tmp_path / "x").exists()


def test_several_variants_at_once(tmp_path, run):
    sources = [write_demo_checkpoint(tmp_path / variant, variant) for variant in ("small_075", "small_minimal_100")]
    ran = run("convert", *sources, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    found = [plan_port(path).mapping.variant for path in sorted((tmp_path / "out").iterdir())]
    assert sorted(found) == ["small_075", "small_minimal_100"]


@pytest.fixture
def training(tmp_path):
    """A run's folder of two checkpoints, each in two shards and with a graph."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (9, 10):
        write_bundle(folder / f"model-{step}", demo_variables("small_075", seed=step), shards=2)
        (folder / f"model-{step}.meta").write_bytes(b"")
    return folder


def test_the_files_of_a_checkpoint_are_one_checkpoint(training, run, tmp_path):
    """What a shell makes of `run/model-*`, and more names of the same."""
    names = sorted(training.glob("model-*"))
    assert len(names) == 8
    ran = run("convert", *names, "-o", tmp_path / "out", "--format", "safetensors")
    assert ran.code == 0, ran.err
    lines = [f"wrote     {tmp_path}/out/model-{step}.safetensors" for step in (10, 9)]
    assert [line.partition(" (")[0] for line in ran.out.splitlines()] == lines
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model-10.safetensors", "model-9.safetensors"]
    several = (
        training / "model-9",
        training / "checkpoint",
        training / "model-9.index",
        training / ".." / "run" / "model-10",
    )
    ran = run("convert", *several, "-o", tmp_path / "more")
    assert [line.split()[1] for line in ran.out.splitlines()] == [
        f"{tmp_path}/more/model-{step}.pth" for step in (9, 10)
    ]


def test_all_names_are_of_one_checkpoint(training, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(training.glob("model-9*"))
    assert run("convert", *names, "-o", "one.safetensors").code == 0
    assert "read      " in run("convert", *names).out
    assert (tmp_path / "small_075.pth").is_file()
    assert run("convert", *names, "-o", "new").code == 0
    (tmp_path / "there").mkdir()
    assert run("convert", *names, "-o", "there", "--format", "safetensors").code == 0
    assert run("convert", *names[:1], "-o", "there", "--format", "pth").code == 0
    found = sorted(str(path) for folder in ("new", "there") for path in Path(folder).iterdir())
    assert found == ["new/model-9.pth", "there/model-9.pth", "there/model-9.safetensors"]
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "there" / "model-9.safetensors").read_bytes()
    assert "mapped" in run("convert", *names, "--dry-run").out


def test_names_of_one_checkpoint(tmp_path):
    from porter.exports.convert import one_each

    for number in range(2):
        (tmp_path / f"v1-{number:05d}-of-00002").write_bytes(table_bytes([(b"", b"tensors")]))
    shards = [str(tmp_path / f"v1{ending}") for ending in ("-00001-of-00002", "-00000-of-00002", "")]
    assert one_each([*shards, str(tmp_path)]) == {f"{tmp_path}/v1-?????-of-00002": "v1"}
    with pytest.raises(PorterError, match="no such file"):
        one_each([*shards, str(tmp_path / "none")])
    store = "https://store/run/model"
    names = [f"{store}-1{ending}" for ending in (".meta", ".index", ".data-00000-of-00001", "")]
    assert one_each([*names, f"{store}-2.meta"]) == {f"{store}-1": "model-1", f"{store}-2.meta": "model-2.meta"}


def test_no_torch(demo_folder, tmp_path):
    """Importing torch costs three times what all the rest does."""
    one = tmp_path / "b.safetensors"
    commands = [["convert", demo_folder, "-o", tmp_path / f"b{end}"] for end in (".safetensors", ".onnx", ".tflite")]
    commands += [["diff", one, one], ["export-tf", one, tmp_path / "tf"]]
    code = (
        "import sys; from porter.commands import main\n"
        f"for words in {[[*map(str, words)] for words in commands]}:\n"
        "    sys.argv = ['mnv3-port', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, words\n"
        "    assert 'torch' not in sys.modules, words"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_same_bytes_by_either_road(demo_folder, tmp_path):
    from porter.artifacts.artifact import load_artifact, save_artifact

    path, _ = porter.convert(demo_folder, tmp_path / "a.safetensors")
    save_artifact(tmp_path / "b.safetensors", load_artifact(path))
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
