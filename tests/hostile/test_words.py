"""Mapping files, names and small files that people send: one line each, nothing run, nothing written elsewhere."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from porter.artifacts.artifact import load_artifact
from porter.errors import PorterError
from porter.evaluation.journal import read_journal
from porter.parity.demo import demo_variables
from porter.photos.images import read_image
from porter.sources.bundle_writer import write_bundle
from porter.text import printable, shortened


def mapping(tmp_path, text):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    return path


MAPPINGS = {
    "base: small_075.yaml\nvariant: ../../X": "is not a plain name",
    "base: small_075.yaml\nvariant: a\ntimm: ../X": "is not a plain name",
    "base: small_075.yaml\ndefinition: {divisor: 0}": "definition.divisor: Expected `int` >= 1",
    "base: small_075.yaml\ndefinition: {gate: .nan}": "definition.gate: Expected `float` > 0",
    "base: small_075.yaml\ndefinition: {gate: .inf}": "definition.gate: Expected `float` <= 1024",
    "base: small_075.yaml\ninput: {size: 100000000}": "input.size",
    "base: small_075.yaml\n[a, b]: c": "not readable as YAML|a key is a plain name",
    "? [a, b]\n: c": "a key is a plain name",
    "a: &a [*a]": "nested deeper|values",
    "base: small_075.yaml\nnetwork: {blocks: [{stage: 0, kernel: 3, expansion: '1e999999999', out: 16, se: true, "
    "activation: relu, stride: 2}]}": "is no number or fraction",
    "x: " + "[" * 5000 + "]" * 5000: "nested deeper|YAML",
    "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]): "values",
}


@pytest.mark.parametrize("text", MAPPINGS, ids=range(len(MAPPINGS)))
def test_mapping_files(run, tmp_path, demo_folder, text):
    ran = run("convert", demo_folder, "--mapping", mapping(tmp_path, text), "-o", tmp_path / "a.pth")
    assert ran.code == 2, ran.err
    assert any(words in ran.err for words in MAPPINGS[text].split("|")), ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "a.pth").exists()


def test_bases_in_diamonds(run, tmp_path, demo_folder):
    """24 files that name the next one twice: 2^24 to read."""
    for number in range(24):
        (tmp_path / f"{number}.yaml").write_text(f"base: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "24.yaml").write_text("base: small_075.yaml\n")
    ran = run("convert", demo_folder, "--mapping", tmp_path / "0.yaml", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "through `base:`" in ran.err


def test_names_cannot_forge_lines_or_move_the_cursor(run, tmp_path):
    variables = demo_variables("small_075")
    variables["evil\nvariant   large_100\x1b[2J\x1b]0;title\x07"] = np.zeros(3, np.float32)
    write_bundle(tmp_path / "model-1", variables)
    for command in (["inspect"], ["convert", "-o", tmp_path / "a.pth"], ["convert", "--dry-run"]):
        ran = run(command[0], tmp_path / "model-1", *command[1:])
        assert "\x1b" not in ran.out + ran.err
        assert not any(line.startswith("variant   large_100") for line in (ran.out + ran.err).splitlines())
        assert "evil\\nvariant" in ran.out + ran.err


def test_file_names_that_are_no_text(run, tmp_path):
    name = b"\xff\xfe.pb".decode("utf-8", "surrogateescape")
    ran = run("inspect", tmp_path / name)
    assert ran.code == 2
    assert "\\udcff" in ran.err


def test_long_lines_are_cut():
    assert len(shortened("x" * 10_000)) <= 300
    assert shortened("ends with what to do").endswith("what to do")
    assert printable("a\tb\udc80") == "a\\tb\\udc80"


def test_state_dicts_of_training_scripts(tmp_path):
    """bfloat16 and parameters are ordinary; sparse and meta tensors and numbers for names are not."""
    torch.save(
        {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "a.pth"
    )
    tensors = load_artifact(tmp_path / "a.pth").tensors
    assert tensors["b"].dtype == torch.float32
    assert [tensor.numpy().sum() for tensor in tensors.values()] == [4, 3]
    for bad in ({"w": torch.ones(2, 2).to_sparse()}, {"w": torch.ones(2, device="meta")}, {0: torch.ones(2)}):
        torch.save(bad, tmp_path / "a.pth")
        with pytest.raises(PorterError, match=r"a\.pth"):
            load_artifact(tmp_path / "a.pth")


def test_weights_that_folding_makes_infinite(run, make_checkpoint, tmp_path):
    def large(variables):
        name = next(n for n in variables if n.endswith("expanded_conv_3/project/weights"))
        variables[name][:] = np.finfo(np.float32).max

    ran = run("convert", make_checkpoint(large), "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "NaN or infinite" in ran.err

    def negative(variables):
        variables["MobilenetV3/Conv/BatchNorm/moving_variance"][:] = -1

    ran = run("convert", make_checkpoint(negative), "--fold-bn", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "a variance below 0" in ran.err


def test_predictions_that_are_no_numbers(run, demo_folder, tmp_path):
    from PIL import Image

    run("convert", demo_folder, "-o", tmp_path / "a.pth")
    artifact = load_artifact(tmp_path / "a.pth")
    artifact.tensors["conv_stem.weight"][:] = float("nan")
    torch.save(artifact.tensors, tmp_path / "b.pth")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    ran = run("predict", tmp_path / "b.pth", tmp_path / "a.png", "--variant", "small_075")
    assert ran.code == 2
    assert "its outputs are NaN or infinite" in ran.err
    assert "nan%" not in ran.out


def test_images(tmp_path):
    from PIL import Image

    Image.new("1", (65_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(PorterError, match="65000 x 1 pixels; not a photo"):
        read_image(tmp_path / "thin.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.ppm")
    with pytest.raises(PorterError, match="not a readable image"):
        read_image(tmp_path / "a.ppm")


def test_journals(tmp_path):
    folder = tmp_path / "journal"
    read_journal(folder, {"a": 1})
    (folder / "0.jsonl").write_text('5\nnull\n[0, []]\n[1, [[3, [0], [3]]]]\n[2, "x"]\n[1, [[3')
    assert list(read_journal(folder, {"a": 1})) == [1]
    (folder / "evaluation.json").write_text("5")
    with pytest.raises(PorterError, match="is no journal"):
        read_journal(folder, {"a": 1})


@pytest.mark.parametrize("label", ["²", "9" * 5000])
def test_labels(run, demo_folder, tmp_path, label):
    from PIL import Image

    (tmp_path / "i").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "i" / "a.png")
    (tmp_path / "l.csv").write_text(f"file,label\na,{label}\n")
    ran = run("evaluate", demo_folder, tmp_path / "i", "--labels", tmp_path / "l.csv", "--workers", "0")
    assert ran.code == 2
    (tmp_path / "l.csv").write_text("file,label\na,1\na.png,2\n")
    ran = run("evaluate", demo_folder, tmp_path / "i", "--labels", tmp_path / "l.csv", "--workers", "0")
    assert ran.code == 2
    assert "is listed twice" in ran.err


def test_damage_in_an_archive_names_the_archive(run, tmp_path, demo_folder):
    """A flipped byte among the values: found when they are read, long after unpacking."""
    folder = shutil.copytree(demo_folder, tmp_path / "v3")
    [shard] = folder.rglob("*.data-00000-of-00001")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    shutil.make_archive(str(tmp_path / "v3"), "gztar", tmp_path, "v3")
    for command in ("convert", "verify", "diff"):
        options = [tmp_path / "a.pth"] if command == "diff" else ["-o", tmp_path / "a.pth"]
        if command == "verify":
            options = ["--reference", demo_folder / "expected.npz"]
        else:
            run("convert", demo_folder, "-o", tmp_path / "a.pth", "--force")
        ran = run(command, tmp_path / "v3.tar.gz", *options, *(["--force"] if command == "convert" else []))
        assert ran.code == 2, (command, ran.err)
        assert f"{tmp_path}/v3.tar.gz/v3/ema/" in ran.err, (command, ran.err)
        assert "mnv3-port-" not in ran.err
