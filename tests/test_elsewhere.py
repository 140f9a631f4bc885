"""The network in PyTorch's other tools: TorchScript, FX quantisation, ONNX from torch, DistributedDataParallel."""

import warnings

import numpy as np
import pytest
import torch

import porter

IMAGES = torch.linspace(-1, 1, 2 * 3 * 65 * 96).sin().reshape(2, 3, 65, 96)


@pytest.fixture(scope="module")
def model(demo_folder):
    return porter.create_model("small_075", demo_folder)


@pytest.mark.parametrize("variant", ["small_075", pytest.param("edgetpu_075", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_scripted(variant):
    """At any size, since the padding is in the script."""
    model = porter.create_model(variant)
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


def test_distributed_without_a_warning_of_strides(model, tmp_path):
    """Its buckets have the strides of the weights; gradients with others are copied, with a warning."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        distributed = torch.nn.parallel.DistributedDataParallel(porter.create_model("small_075").train())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            distributed(IMAGES).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, weight in distributed.module.named_parameters():
        assert weight.grad.stride() == weight.stride(), name
