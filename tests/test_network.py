"""The network: timm's keys, what PyTorch users do with a model, and TensorFlow's endpoints."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from conftest import FOLDERS, endpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import porter
from porter.errors import ArtifactError
from porter.mapping.files import list_variants, load_variant
from porter.models.mobilenet_v3 import MobileNetV3
from porter.network.network import build_network
from porter.network.nodes import endpoint_modules, state_dict_shapes
from porter.network.spec import BlockRow

RECORDED = json.loads((Path(__file__).parent / "data" / "timm_keys.json").read_text())["keys"]


@pytest.fixture(scope="module")
def model(demo_folder):
    return porter.create_model("small_075", demo_folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 97, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("variant", RECORDED)
def test_state_dict_is_timms_in_names_order_and_shapes(variant):
    own = {name: list(value.shape) for name, value in porter.create_model(variant).state_dict().items()}
    assert list(own.items()) == list(RECORDED[variant].items())


@pytest.mark.parametrize("variant", FOLDERS)
def test_endpoints_are_the_recorded_graphs(variant, shared):
    with np.load(shared / FOLDERS[variant] / "expected.npz") as file:
        recorded = {name.removeprefix("ep/") for name in file.files if name.startswith("ep/")}
    assert set(endpoint_modules(build_network(load_variant(variant)), classes=1)) | {"Predictions"} == recorded


tables = st.lists(
    st.fixed_dictionaries(
        {
            "kernel": st.sampled_from([1, 3, 5]),
            "expansion": st.sampled_from([1, 2, "7/3", 4.5]),
            "out": st.integers(1, 40),
            "se": st.booleans(),
            "activation": st.sampled_from(["relu", "hard_swish"]),
            "stride": st.sampled_from([1, 2]),
            "stage": st.booleans(),  # whether a new stage begins
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(tables, st.sampled_from([0.5, 1.0, 1.3]), st.integers(1, 20))
def test_shapes_without_torch_are_the_networks(rows, multiplier, classes):
    """Any table: mapping.state_dict says what the network built from it has, in the same order."""
    stage, blocks = -1, []
    for row in rows:
        stage += row["stage"] or stage < 0
        blocks.append(BlockRow(**{**row, "stage": stage}))
    variant = load_variant("small_100")
    table = msgspec.structs.replace(variant.network, blocks=blocks, multiplier=multiplier)
    network = build_network(msgspec.structs.replace(variant, network=table))
    with torch.device("meta"):
        own = MobileNetV3(network, classes).state_dict()
    assert list(state_dict_shapes(network, classes).items()) == [(name, tuple(v.shape)) for name, v in own.items()]


def test_endpoints_of_a_run(model, images):
    found = endpoints(model, images)
    assert found["layer_5/depthwise_output"].shape[1] == 72 + 24
    assert torch.equal(found["Logits"], model(images))
    assert torch.allclose(found["Predictions"].sum(1), torch.ones(2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("variant", list_variants())
def test_features_only(variant):
    features = porter.create_model(variant, features_only=True)
    maps = features(torch.zeros(1, 3, 224, 192))
    assert [m.shape[1] for m in maps] == features.channels
    assert features.reductions == [2, 4, 8, 16, 32]
    assert [tuple(m.shape[2:]) for m in maps] == [(224 // r, 192 // r) for r in features.reductions]


def test_features_of_a_checkpoint(demo_folder, model, images):
    features = porter.create_model("small_075", demo_folder, features_only=True, out_indices=(2, 4))
    found = endpoints(model, images)
    maps = features(images)
    assert [m.shape[1] for m in maps] == [24, 432]
    assert torch.equal(maps[0], found["layer_4"])
    assert torch.equal(maps[1], found["layer_13"])


def test_channels_last(demo_folder, model, images):
    expected = model(images)
    own = porter.create_model("small_075", demo_folder)  # .to() changes it in place
    found = own.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_training_updates_batch_norm_with_slims_momentum(demo_folder, images):
    model = porter.create_model("small_075", demo_folder).train()
    before = model.bn1.running_mean.clone()
    activations = model.conv_stem(images)
    nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())
    expected = before * 0.997 + activations.mean((0, 2, 3)) * 0.003
    torch.testing.assert_close(model.bn1.running_mean, expected)


def test_dropout_in_training_alone(demo_folder, images):
    model = porter.create_model("small_075", demo_folder, dropout=1.0)
    assert model(images).std() > 0
    assert torch.equal(model.forward_head(torch.ones(1, 432, 2, 2)), model.forward_head(torch.ones(1, 432, 2, 2)))
    dropped = model.train().forward_head(torch.ones(1, 432, 2, 2))
    assert torch.equal(dropped[0], model.classifier.bias)


def test_new_classifier(demo_folder, images, model):
    fresh = porter.create_model("small_075", demo_folder, num_classes=7)
    assert fresh(images).shape == (2, 7)
    assert torch.equal(fresh.forward_features(images), model.forward_features(images))
    assert porter.create_model("small_075", demo_folder, num_classes=0)(images).shape == (2, 1024)


def test_grey_images_equal_grey_rgb(demo_folder, model, images):
    grey = porter.create_model("small_075", demo_folder, in_chans=1)
    one = images[:, :1]
    torch.testing.assert_close(grey(one), model(one.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    assert porter.create_model("small_075", demo_folder, in_chans=4)(torch.zeros(1, 4, 64, 64)).shape == (1, 1000)


@pytest.mark.slow
def test_export_keeps_size_and_padding_dynamic(model, images):
    shape = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (images,), dynamic_shapes=(shape,)).module()
    for size in ((97, 64), (96, 64), (75, 33), (128, 160)):
        other = torch.rand(3, 3, *size)
        torch.testing.assert_close(program(other), model(other), rtol=1e-4, atol=1e-4)


def test_torchscript_trace_holds_at_other_sizes(model, images):
    with torch.no_grad():
        traced = torch.jit.trace(model, images)
    for size in ((97, 64), (96, 64), (75, 33)):
        other = torch.rand(3, 3, *size)
        torch.testing.assert_close(traced(other), model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compile(model, images):
    compiled = torch.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)


def test_foreign_state_dict(tmp_path, demo_folder, model, images):
    """A plain state dict, as timm or a training script saves it, is taken for gate 1/6."""
    timm_like = porter.create_model("small_075", demo_folder, layout="timm")
    torch.save({"state_dict": dict(timm_like.state_dict()), "epoch": 3}, tmp_path / "plain.pth")
    loaded = porter.create_model("small_075", tmp_path / "plain.pth")
    assert torch.equal(loaded(images), timm_like(images))
    torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ArtifactError, match="gate fold is not known"):
        porter.create_model("small_075", tmp_path / "plain.pth", layout="slim")
    with pytest.raises(ArtifactError, match=r"does not fit the network \(\d+ problems\)"):
        porter.create_model("small_100", tmp_path / "plain.pth")


def test_pickles_with_code_are_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "zip.pth")
    for name in ("evil.pth", "zip.pth"):
        with pytest.raises(ArtifactError, match=r"holds Python objects \(print\)|not a readable PyTorch"):
            porter.create_model("small_075", tmp_path / name)
