"""The network in PyTorch's other tools: TorchScript, FX quantisation, ONNX from torch, DistributedDataParallel."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import porter

IMAGES = torch.linspace(-1, 1, 2 * 3 * 65 * 96).sin().reshape(2, 3, 65, 96)


@pytest.fixture(scope="module", params=["three_blocks", pytest.param("small_075", marks=pytest.mark.slow)])
def model(request):
    """Three blocks have every kind of layer; what compiles or quantises them takes its time for each."""
    if request.param == "small_075":
        return porter.create_model("small_075", request.getfixturevalue("demo_folder"))
    return request.getfixturevalue("three_blocks_model")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_edgetpu_scripted():
    test_scripted(porter.create_model("edgetpu_075"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_scripted(model):
    """At any size, since the padding is in the script."""
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for images in (IMAGES, IMAGES[:1, :, :32, :33]):
            torch.testing.assert_close(scripted(images), model(images))


def test_a_head_is_traced():
    """Its images are of the size that it was traced with."""
    model = porter.create_model("lraspp_small", num_classes=5)
    with torch.no_grad():
        traced = torch.jit.trace(model, IMAGES, check_trace=False)
        torch.testing.assert_close(traced(IMAGES), model(IMAGES))


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_of_torch(model, tmp_path, dynamo):
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.onnx.export(model, (IMAGES,), str(tmp_path / "m.onnx"), dynamo=dynamo, opset_version=18, input_names=["x"])
    [found] = runtime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": IMAGES.numpy()})
    with torch.no_grad():
        expected = model(IMAGES).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_by_fx(model):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(model, get_default_qconfig_mapping("onednn"), (IMAGES,))
    with torch.no_grad():
        prepared(IMAGES)
        levels = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.quint8)
        assert levels.int_repr().tolist() == [2, 2]
        converted = convert_fx(prepared)
        expected = model(IMAGES)
        assert (converted(IMAGES) - expected).abs().max() < 0.5 * expected.abs().max()
    assert any("quantized" in type(one).__module__ for one in converted.modules())


def test_gradients_have_the_strides_of_their_weights():
    """DistributedDataParallel's buckets have the weights' strides; it copies gradients with others, with a warning."""
    model = porter.create_model("small_075").train()
    model(IMAGES).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.stride() == weight.stride(), name


DISTRIBUTED = """
import os, warnings, torch, porter
torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/group", rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(porter.create_model("small_075").train())
warnings.simplefilter("error")
model(torch.linspace(-1, 1, 2 * 3 * 65 * 96).sin().reshape(2, 3, 65, 96)).square().mean().backward()
print("no warning", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_distributed_without_a_warning_of_strides(tmp_path):
    """In a process that ends with its group: to destroy one waits for threads that may wait for Python's lock."""
    ran = subprocess.run([sys.executable, "-c", DISTRIBUTED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "no warning\n"), ran.stderr
