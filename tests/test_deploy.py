"""``porter.deploy``: the same function as the model it was made of, at every endpoint, size and batch."""

import numpy as np
import pytest
import torch
from conftest import endpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import furthest, images, trained

import porter
from porter.exports import runtime
from porter.exports.deploy import model_program
from porter.exports.runtime import Session
from porter.mapping.files import list_variants

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("variant", list_variants())
@pytest.mark.parametrize(("batch", "size"), [(2, (75, 65)), pytest.param(9, (96, 64), marks=pytest.mark.slow)])
def test_every_endpoint(variant, batch, size):
    model = trained(variant)
    x = images(batch, *size)
    expected = endpoints(model, x)
    del expected["Predictions"]
    for fast in (porter.deploy(model), porter.deploy(model, size)):
        found = fast.endpoints(x)
        assert list(found) == list(expected)
        for name, theirs in expected.items():
            assert furthest(torch.from_numpy(found[name]).reshape(theirs.shape), theirs) < 1e-5, name
        assert furthest(fast(x), expected["Logits"]) < 1e-5


def test_dilations_at_any_size():
    """ONNX Runtime pads no dilated convolution by itself."""
    model, x = trained("small_075", output_stride=8), images(2, 65, 48)
    with torch.no_grad():
        for fast in (porter.deploy(model), porter.deploy(model, (65, 48))):
            assert furthest(fast(x), model(x)) < 1e-5


@pytest.mark.parametrize("layer", ["bn1", "global_pool", "classifier", "blocks.1.0.act1"])
def test_layers_that_the_network_does_not_have(layer):
    model = trained("small_075")
    other = {
        "bn1": torch.nn.BatchNorm2d(16, eps=1e-5),
        "global_pool": torch.nn.AdaptiveMaxPool2d(1),
        "classifier": torch.nn.Linear(1024, 5),
        "blocks.1.0.act1": torch.nn.Hardswish(),
    }
    model.set_submodule(layer, other[layer])
    with pytest.raises(porter.PorterError, match=f"layer {layer}: is .*, the network has "):
        porter.deploy(model)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_any_size(height, width, batch):
    model = trained("small_075")
    x = images(batch, height, width)
    with torch.no_grad():
        expected = model(x)
    for size in (None, (height, width)):
        assert furthest(porter.deploy(model, size)(x), expected) < 1e-5


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"num_classes": 7}, {"in_chans": 1}, {"layout": "slim"}])
def test_other_models(options):
    model = trained("small_100", **options)
    x = images(2, 64, 64)[:, : options.get("in_chans", 3)]
    with torch.no_grad():
        assert furthest(porter.deploy(model, 64)(x), model(x)) < 1e-5


@pytest.mark.parametrize("variant", ["small_075", "edgetpu_075", "large_minimal_100"])
@pytest.mark.parametrize("indices", [None, (3, 1), (2, 2), (0,)])
def test_features(variant, indices):
    model, x = trained(variant, features_only=True, out_indices=indices), images(2, 75, 64)
    with torch.no_grad():
        expected = model(x)
    found = porter.deploy(model)(x)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert furthest(ours, theirs) < 1e-5


@pytest.mark.parametrize("size", [None, (224, 224)])
def test_means_of_flat_maps(size):
    """One sum of n numbers is up to n / 2 units off, if all additions round the same way; eight sums, n / 16."""
    program = model_program(trained("small_075"))
    images = np.full((1, 3, 224, 224), -1, np.float32)
    images[:, :, :112] = [[[0.9]], [[0.3]], [[-0.4]]]
    session = Session(program, size, 1, ["layer_2/depthwise_output", "blocks.0.0.se/mean"])
    maps, found = session.run(images)
    means = maps.mean((2, 3), np.float64, keepdims=True)
    assert np.abs(found - means).max() <= 56 * 56 / 16 * 2**-24 * np.abs(means).max()


def test_arrays_and_artifacts(demo_folder, tmp_path):
    path, _ = porter.convert(demo_folder, tmp_path / "a.safetensors")
    x = images(3, 64, 64)
    expected = porter.deploy(porter.create_model("small_075", path))(x)
    assert isinstance(expected, torch.Tensor)
    found = porter.deploy(path, threads=1)(x.numpy())
    assert isinstance(found, np.ndarray)
    assert furthest(torch.from_numpy(found), expected) < 1e-5
    assert furthest(porter.deploy(str(demo_folder))(x), expected) < 1e-5
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).requires_grad_()
    assert torch.equal(porter.deploy(path)(strided), porter.deploy(path)(x))


def test_parts(monkeypatch):
    """A batch of any size, an empty one too."""
    model, x = trained("small_minimal_100"), images(5, 64, 64)
    fast = porter.deploy(model)
    whole = fast(x)
    monkeypatch.setattr(runtime, "PART_PIXELS", 2 * 64 * 64 // fast.threads)
    assert furthest(fast(x), whole) < 1e-5
    assert fast(x[:0]).shape == (0, 1000)


def test_the_model_stays_as_it_is():
    model = trained("small_075")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast, x = porter.deploy(model), images(1, 64, 64)
    kept = x.clone()
    first = fast(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(fast.parameters()) == []
    assert torch.equal(x, kept)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    assert torch.equal(fast(x), first)


def test_refused():
    fast = porter.deploy(porter.create_model("small_075"), 64)
    with pytest.raises(ValueError, match="deployed for 64x64 images, not 65x64"):
        fast(images(1, 65, 64))
    with pytest.raises(ValueError, match=r"NHWC\? use x.transpose\(0, 3, 1, 2\)"):
        fast(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(TypeError, match="takes a tensor of .*, not NoneType"):
        fast(None)
    with pytest.raises(TypeError, match="for 8-bit RGB"):
        fast(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(porter.PorterError, match="only a float32 model"):
        porter.deploy(porter.create_model("small_075").double())
    with pytest.raises(porter.PorterError, match="Linear: only what create_model gives"):
        porter.deploy(torch.nn.Linear(2, 2))
    changed = porter.create_model("small_075")
    changed.classifier = torch.nn.Sequential(torch.nn.Linear(1024, 10))
    with pytest.raises(porter.PorterError, match="layer classifier: is missing"):
        porter.deploy(changed)


@pytest.mark.tensorflow
def test_verify(demo_folder, run):
    ran = run("verify", demo_folder, "--deploy", "--reference", "tf.nn", "--size", "75x64")
    assert ran.code == 0, ran.err
    assert "same function" in ran.out
    ran = run("verify", demo_folder, "--deploy", "--dtype", "float64")
    assert ran.code == 2
    assert "only our own port has an inference form, and only in float32" in ran.err


def test_verify_finds_a_fault(demo_folder, run, monkeypatch):
    """A graph whose padding has its odd pixel in front."""
    from porter.exports import onnx_model

    right = onnx_model._Writer._convolution

    def wrong(writer, node):
        attributes = right(writer, node)
        if "pads" in attributes:
            attributes["pads"] = attributes["pads"][2:] + attributes["pads"][:2]
        return attributes

    monkeypatch.setattr(onnx_model._Writer, "_convolution", wrong)
    ran = run("verify", demo_folder, "--deploy", "--reference", demo_folder / "expected.npz")
    assert ran.code == 1, ran.out


@pytest.mark.slow
def test_verify_all_six(released, run):
    ran = run("verify", released[1], "--deploy", "--reference", released[1] / "expected.npz")
    assert ran.code == 0, ran.out
