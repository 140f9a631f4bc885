"""A port on a device of the user's, with the CPU as the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FOLDERS

import porter
from porter.errors import PorterError
from porter.exports.convert import convert

SCRIPT = Path(__file__).parents[1] / "scripts" / "device_check.py"
# A device that keeps 10 bits of what convolutions get, while PyTorch is allowed to, as TF32 does
LOSSY = """
import torch, porter
def made():
    model = porter.create_model("three_blocks", {path!r}, mapping={mapping!r})
    for conv in model.modules():
        if type(conv).__name__ == "SameConv2d":
            conv.register_forward_pre_hook(rounded)
    return model
def rounded(_module, given):
    x = given[0]
    if torch.backends.cudnn.allow_tf32 and x.dtype == torch.float32:
        x = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return (x,)
"""


def test_on_the_device(demo_folder):
    recorded = str(demo_folder / "expected.npz")
    verdict = porter.verify(demo_folder, reference=recorded, device="cpu")
    assert verdict.passed
    assert verdict.environment["device"] == "cpu"


@pytest.mark.parametrize("device", ["cuda:77", "nowhere", "meta"])
def test_devices_that_are_not_here(demo_folder, device):
    with pytest.raises(PorterError, match=f"device '{device}': not here"):
        porter.verify(demo_folder, reference=str(demo_folder / "expected.npz"), device=device)


def test_only_modules_run_on_a_device(demo_folder, tmp_path, run):
    convert(demo_folder, tmp_path / "x.onnx")
    options = ("--reference", demo_folder / "expected.npz", "--device", "cpu")
    ran = run("verify", demo_folder, tmp_path / "x.onnx", *options)
    assert ran.code == 2
    assert "only a module in PyTorch runs on a device" in ran.err
    assert "only a module in PyTorch runs" in run("verify", demo_folder, "--deploy", *options).err


@pytest.mark.tensorflow
def test_tf32_is_named(three_blocks, tmp_path, run):
    """Lost precision that comes back without TF32 has it as its cause; other lost precision has not."""
    path, _ = convert(three_blocks.source, tmp_path / "x.pth", mapping=three_blocks.mapping)
    (tmp_path / "made.py").write_text(LOSSY.format(path=str(path), mapping=str(three_blocks.mapping)))
    given = ("verify", three_blocks.source, f"{tmp_path / 'made.py'}:made", *three_blocks.options)
    ran = run(*given, "--device", "cpu")
    assert ran.code == 1, ran.out + ran.err
    assert (
        "cause      TF32 convolutions: torch.backends.cudnn.allow_tf32 = False: with it, float32's difference"
        in ran.out
    )
    assert torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert run(*given, "--device", "cpu").code == 0
    finally:
        torch.backends.cudnn.allow_tf32 = True
    always = (tmp_path / "made.py").read_text().replace("torch.backends.cudnn.allow_tf32 and ", "")
    (tmp_path / "always.py").write_text(always)
    options = {"mapping": three_blocks.mapping, "reference": str(three_blocks.recorded), "device": "cpu"}
    verdict = porter.verify(three_blocks.source, f"{tmp_path / 'always.py'}:made", **options)
    assert verdict.as_exact is False
    assert verdict.causes == []


@pytest.mark.slow
@pytest.mark.tensorflow
def test_training_on_the_device(tf, shared):
    assert porter.verify(shared / FOLDERS["small_075"], train=True, device="cpu", sizes=[(32, 32)]).passed


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_check_of_a_device(tf, timm, shared, tmp_path):
    """As it will run where there is an accelerator, but small."""
    options = ("--variants", "small_minimal_100", "--batches", "1", "--size", "33", "-o", str(tmp_path / "found.json"))
    command = [sys.executable, str(SCRIPT), "cpu", str(shared), *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["tf32"], row["passed"]) for row in found["verdicts"]] == [(True, True), (False, True)]
    assert {row["form"] for row in found["speed"]} == {"float32", "bf16 autocast", "channels_last", "torch.compile"}
    assert all(row["ratio_to_timm"] > 0 for row in found["speed"])
    assert found["evaluated_per_second"] > 0
    assert found["left_out"] == []
