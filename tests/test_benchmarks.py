"""Benchmarks run, at tiny sizes. How fast a machine is, no test asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def bench(name, results, *options):
    """Run one and return what it wrote."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--results", results, *map(str, options)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "| ---" in ran.stdout
    return json.loads((results / f"{name}.json").read_text())


@pytest.mark.slow
def test_reading(tmp_path):
    found = bench("reading", tmp_path, *("--mib", 1, "--list", 50, "--counts", 10, 20, "--sizes", 1, 2, "--rounds", 1))
    assert found["list"]["variables"] == 50
    assert len(found["growth"]) == 4
    assert all(row["open_seconds"] > 0 and row["read_seconds"] > 0 for row in found["growth"])
    assert (tmp_path / "growth.svg").read_text().count("<svg") == 1


@pytest.mark.slow
@pytest.mark.tensorflow
def test_cost(tmp_path, demo_folder):
    found = bench("cost", tmp_path, demo_folder, "--runs", 1, "--batch", 2)
    assert len(found["commands"]) == 14
    assert found["claims"]["convert, .pth: x the user's own script"] > 0


@pytest.mark.slow
def test_evaluating(tmp_path):
    if not (SHARED.parent / "real").is_dir():
        pytest.skip(f"no real files beside {SHARED} (set MNV3_CHECKPOINTS)")
    assert bench("evaluating", tmp_path, "--rounds", 1)["same_top1"] == 1000


@pytest.mark.slow
def test_eight_bits(tmp_path):
    if not (SHARED.parent / "real").is_dir():
        pytest.skip(f"no real files beside {SHARED} (set MNV3_CHECKPOINTS)")
    found = bench("eight_bits", tmp_path, "--rounds", 1)
    assert found["same_top1"]["mnv3-port evaluate"] == found["images"] == 500


@pytest.mark.slow
@pytest.mark.tensorflow
def test_inference(tmp_path, shared):
    options = ("--variants", "small_075", "--threads", 1, "--batches", 1, "--rounds", 1, "--no-compile")
    rows = bench("inference", tmp_path, *options)
    assert {"timm eager", "ours eager", "ours folded", "ours deployed", "ONNX Runtime", "TensorFlow", "LiteRT"} <= {
        r["form"] for r in rows
    }
    assert all(row["logits_error"] <= 1e-5 for row in rows if row["logits_error"] is not None)
