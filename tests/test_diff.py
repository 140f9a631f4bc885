"""``diff``: equal, close, missing, reshaped, across formats."""

import json

import numpy as np
import pytest

from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.sources.bundle_writer import write_bundle


@pytest.fixture
def pair(tmp_path):
    """Write two checkpoints, the second changed by a function."""

    def make(change):
        variables = demo_variables("small_075", classes=5)
        write_bundle(tmp_path / "a", variables)
        change(variables)
        write_bundle(tmp_path / "b", variables)
        return tmp_path / "a", tmp_path / "b"

    return make


def test_equal(pair, run):
    ran = run("diff", *pair(lambda variables: None))
    assert (ran.code, ran.out) == (0, "211 equal\n")


def test_every_kind_of_difference(pair, run):
    def change(variables):
        weights = variables["MobilenetV3/Conv/weights"]
        variables["MobilenetV3/Conv/weights"] = np.nextafter(weights, np.float32(9))
        variables["MobilenetV3/Conv_2/weights"] = variables["MobilenetV3/Conv_2/weights"] + np.float32(0.5)
        variables["MobilenetV3/Conv_2/biases"] = np.zeros(7, "f")
        del variables["MobilenetV3/Conv_1/weights"]
        variables["new"] = np.ones(3, "f")

    a, b = pair(change)
    ran = run("diff", a, b, "--json")
    assert ran.code == 1
    found = {row["name"]: row for row in json.loads(ran.out)}
    assert found["MobilenetV3/Conv/weights"]["status"] == "close"
    assert 0 < found["MobilenetV3/Conv/weights"]["max_rel"] < 1e-6
    assert found["MobilenetV3/Conv_2/weights"]["status"] == "differs"
    assert found["MobilenetV3/Conv_2/weights"]["max_abs"] == pytest.approx(0.5, abs=1e-6)
    assert found["MobilenetV3/Conv_2/biases"]["status"] == "reshaped"
    assert found["MobilenetV3/Conv_1/weights"]["status"] == "missing in B"
    assert found["new"]["status"] == "missing in A"
    text = run("diff", a, b)
    assert text.code == 1
    assert "207 equal" in text.out
    assert "1 reshaped" in text.out


def test_tolerance(pair, run):
    def change(variables):
        name = "MobilenetV3/Conv/weights"
        variables[name] = variables[name] * np.float32(1.001)

    a, b = pair(change)
    assert run("diff", a, b).code == 1
    assert run("diff", a, b, "--tolerance", "1e-4").code == 1
    assert run("diff", a, b, "--tolerance", "2e-3").code == 0


def test_nan_is_never_equal(pair, run):
    def change(variables):
        variables["MobilenetV3/Conv/weights"] = variables["MobilenetV3/Conv/weights"] * np.float32("nan")

    assert run("diff", *pair(change), "--tolerance", "1").code == 1


@pytest.mark.parametrize("options", [[], ["--layout", "slim"], ["--fold-bn"], ["--keep-background"]])
def test_artifact_and_its_checkpoint(tmp_path, run, options):
    source = write_demo_checkpoint(tmp_path)
    run("convert", source, "-o", tmp_path / "a.safetensors", *options)
    ran = run("diff", tmp_path / "a.safetensors", source)
    assert ran.code == 0, ran.out + ran.err
    assert "equal" in ran.out


def test_two_artifacts(tmp_path, run):
    source = write_demo_checkpoint(tmp_path)
    for name, layout in (("a", "timm"), ("b", "slim")):
        run("convert", source, "-o", tmp_path / f"{name}.pth", "--layout", layout)
    ran = run("diff", tmp_path / "a.pth", tmp_path / "b.pth")
    assert ran.code == 1
    assert "10 differs" in ran.out  # the project weights that absorb the gate, 2e-5 apart, and the gate itself
    assert run("diff", tmp_path / "a.pth", tmp_path / "b.pth", "--tolerance", "1e-4").code == 0


def test_bad_input(tmp_path, run):
    ran = run("diff", tmp_path / "none", tmp_path / "a.pth")
    assert ran.code == 2
    assert f"{tmp_path}/none: no such file" in ran.err
