"""One state dict, one function: whatever a model was opened from, its weights say which gate they are made for."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_bits

import porter
from porter.artifacts.artifact import load_artifact
from porter.errors import ArtifactError, PorterError
from porter.mapping.files import load_mapping
from porter.network.network import GATE_ENTRY
from porter.parity.demo import random_variables
from porter.sources.bundle_writer import write_bundle

VARIANT = "small_075"
HEADS = ("lraspp_small", "ssdlite_small", "small_seg")


def logits(model, side=96):
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side)).astype("f"))
    with torch.no_grad():
        found = model.eval()(images.to(next(model.parameters()).dtype))
    return torch.cat([values.flatten() for values in found]) if isinstance(found, (tuple, list)) else found


def furthest(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture(params=["checkpoint", "timm.pth", "slim.pth", "slim.safetensors", "untrained", "export"])
def source(request, demo_folder, tmp_path):
    """What a model may be opened from."""
    if request.param in ("checkpoint", "untrained"):
        return None if request.param == "untrained" else demo_folder
    if request.param == "export":
        path, _ = porter.convert(demo_folder, tmp_path / "a.pth")
        return porter.export_tf(path, tmp_path / "tensorflow").prefix
    layout = request.param.partition(".")[0]
    return porter.convert(demo_folder, tmp_path / request.param, layout=layout)[0]


def test_saved_and_opened_again(source, tmp_path, timm, run):
    """In create_model, in load_state_dict, in timm's class, and by export-tf: the same function."""
    model = porter.create_model(VARIANT, source)
    expected = logits(model)
    saved = tmp_path / "sd.pth"
    torch.save(model.state_dict(), saved)
    assert furthest(logits(porter.create_model(VARIANT, saved)), expected) < 1e-6
    fresh = porter.create_model(VARIANT)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    assert furthest(logits(fresh), expected) < 1e-6
    theirs = timm.create_model(f"tf_mobilenetv3_{VARIANT}")
    theirs.load_state_dict(torch.load(saved, weights_only=True))
    assert furthest(logits(theirs), expected) < 1e-5
    assert run("export-tf", saved, tmp_path / "back", "--variant", VARIANT).code == 0
    assert furthest(logits(porter.create_model(VARIANT, tmp_path / "back")), expected) < 1e-5


def test_every_source_gives_one_function(demo_folder, source, tmp_path):
    if source is not None:
        assert (
            furthest(logits(porter.create_model(VARIANT, source)), logits(porter.create_model(VARIANT, demo_folder)))
            < 1e-6
        )


def test_slims_own_form_says_so(demo_folder, tmp_path, timm, run):
    model = porter.create_model(VARIANT, demo_folder, layout="slim")
    state = model.state_dict()
    assert float(state[GATE_ENTRY]) == np.float32(0.16667)
    expected = logits(model)
    torch.save(state, tmp_path / "slim.pth")
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"for a squeeze-excite gate of 0\.16667, and this network has 0\.166667"
        ):
            porter.create_model(VARIANT).load_state_dict(state, strict=strict)
    with pytest.raises(RuntimeError, match=f'Unexpected key.* "{GATE_ENTRY}"'):
        timm.create_model(f"tf_mobilenetv3_{VARIANT}").load_state_dict(state)
    plain = porter.create_model(VARIANT, demo_folder).state_dict()
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"for a squeeze-excite gate of 0\.166667, and this network has 0\.16667"
        ):
            model.load_state_dict(plain, strict=strict)
    assert furthest(logits(model), expected) < 1e-6  # nothing was loaded
    # What does read it
    model.load_state_dict(state)
    copied = copy.deepcopy(model)
    copied.load_state_dict(state)
    assert furthest(logits(copied), expected) < 1e-6
    again = porter.create_model(VARIANT, tmp_path / "slim.pth", layout="slim")
    assert furthest(logits(again), expected) < 1e-6
    assert furthest(logits(porter.create_model(VARIANT, tmp_path / "slim.pth")), expected) < 1e-5
    ran = run("export-tf", tmp_path / "slim.pth", tmp_path / "back", "--variant", VARIANT)
    assert ran.code == 0, ran.err
    back = porter.create_model(VARIANT, tmp_path / "back", layout="slim").state_dict()
    assert all(same_bits(back[name].numpy(), value.numpy()) for name, value in state.items())
    ran = run("verify", demo_folder, tmp_path / "slim.pth", "--reference", demo_folder / "expected.npz")
    assert ran.code == 0, ran.out


@pytest.mark.slow
def test_what_torch_makes_of_it_says_so_too(demo_folder, tmp_path):
    """torch.export and torch.jit have state dicts of their own."""
    model = porter.create_model(VARIANT, demo_folder, layout="slim")
    x = torch.zeros(2, 3, 96, 96)
    for state in (torch.export.export(model, (x,)).state_dict, torch.jit.trace(model, x).state_dict()):
        torch.save(dict(state), tmp_path / "state.pth")
        assert furthest(logits(porter.create_model(VARIANT, tmp_path / "state.pth")), logits(model)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits(demo_folder, tmp_path, dtype):
    """The gate is rounded with them, and in bfloat16 to what 1/6 is rounded to as well."""
    path, _ = porter.convert(demo_folder, tmp_path / "a.pth", layout="slim")
    state = {
        name: v.to(dtype) if v.is_floating_point() else v for name, v in torch.load(path, weights_only=True).items()
    }
    torch.save(state, tmp_path / "plain.pth")
    kept = torch.load(path, weights_only=True)
    kept.update(state)
    torch.save(kept, tmp_path / "with metadata.pth")
    slim = porter.create_model(VARIANT, layout="slim")
    slim.load_state_dict(state)
    with pytest.raises(RuntimeError, match="would compute something else"):
        porter.create_model(VARIANT).load_state_dict(state)
    for name in ("plain.pth", "with metadata.pth"):
        for layout in (None, "slim"):
            assert furthest(logits(porter.create_model(VARIANT, tmp_path / name, layout=layout)), logits(slim)) < 1e-5


@pytest.mark.parametrize("saved", [8, 16, 32])
def test_an_output_stride_given_again(demo_folder, tmp_path, saved):
    """It replaces the one that the file states; the dilations were lost."""
    path, x = tmp_path / "a.pth", torch.randn(1, 3, 65, 97)
    torch.save(porter.create_model("small_075", demo_folder, output_stride=saved).state_dict(), path)
    with torch.no_grad():
        for stride in (8, 16, 32):
            expected = porter.create_model("small_075", demo_folder, output_stride=stride)(x)
            assert torch.equal(porter.create_model(path, output_stride=stride)(x), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_adapted_to_other_channels(demo_folder, tmp_path, channels):
    """The state dict says so, and becomes what a checkpoint becomes."""
    model, x = porter.create_model("small_075", demo_folder, in_chans=channels), torch.randn(2, channels, 65, 64)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with torch.no_grad():
        for path in (tmp_path / "a.pth", porter.convert(tmp_path / "a.pth", tmp_path / "b.safetensors")[0]):
            opened = porter.create_model(path)
            assert torch.equal(opened(x), model(x))
            assert opened.pretrained_cfg == model.pretrained_cfg
            assert len(opened.pretrained_cfg["mean"]) == channels


def test_below_two_wrappers(demo_folder, tmp_path):
    state = porter.create_model("small_075", demo_folder).state_dict()
    wrapped = torch.nn.Module()
    wrapped.module = torch.nn.Module()
    wrapped.module._orig_mod = porter.create_model("small_075", demo_folder)
    torch.save(wrapped.state_dict(), tmp_path / "a.pth")
    found = porter.create_model(tmp_path / "a.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_classifier_alone_may_be_loaded(demo_folder):
    """It has no gate."""
    model = porter.create_model(VARIANT, demo_folder, layout="slim")
    head = {name: value for name, value in model.state_dict().items() if name.startswith("classifier")}
    model.load_state_dict(head, strict=False)


def test_inside_another_module(demo_folder):
    """Under a prefix, as in a model of one's own or DistributedDataParallel."""
    slim, plain = (
        torch.nn.ModuleDict({"body": porter.create_model(VARIANT, demo_folder, layout=x)}) for x in ("slim", None)
    )
    assert f"body.{GATE_ENTRY}" in slim.state_dict()
    slim.load_state_dict(slim.state_dict())
    with pytest.raises(RuntimeError, match="would compute something else"):
        plain.load_state_dict(slim.state_dict())


@pytest.mark.parametrize("variant", HEADS)
def test_networks_with_heads(variant, tmp_path):
    """Their gates are slim's as well."""
    if variant.endswith("_seg"):
        model, slim = (porter.create_model(variant, layout=layout, features_only=True) for layout in (None, "slim"))
    else:
        model, slim = (porter.create_model(variant, layout=layout, num_classes=4) for layout in (None, "slim"))
    assert GATE_ENTRY not in model.state_dict()
    assert GATE_ENTRY in slim.state_dict()
    expected = logits(slim, 320)
    slim.load_state_dict(slim.state_dict())
    with pytest.raises(RuntimeError, match="would compute something else"):
        model.load_state_dict(slim.state_dict())
    torch.save(slim.state_dict(), tmp_path / "slim.pth")
    if not variant.endswith("_seg"):
        assert furthest(logits(porter.create_model(variant, tmp_path / "slim.pth"), 320), expected) < 1e-5


@pytest.mark.parametrize("variant", ["small_minimal_100", "edgetpu_075"])
def test_networks_without_a_gate(variant, tmp_path):
    one, other = (porter.create_model(variant, layout=layout).state_dict() for layout in ("timm", "slim"))
    assert list(one) == list(other)
    torch.save(one, tmp_path / "sd.pth")
    porter.create_model(variant, tmp_path / "sd.pth", layout="slim")  # there is nothing to fold


def change(tmp_path, demo_folder, value):
    path, _ = porter.convert(demo_folder, tmp_path / "a.pth", layout="slim", force=True)
    state = torch.load(path, weights_only=True)
    torch.save({**state, GATE_ENTRY: value}, path)
    return path


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9, [0.16667, 0.16667], [], 1 + 1j])
def test_entries_that_are_no_gate(demo_folder, tmp_path, run, value):
    path = change(
        tmp_path, demo_folder, torch.tensor(value, dtype=None if isinstance(value, complex) else torch.float64)
    )
    for command in (("inspect", path), ("export-tf", path, tmp_path / "x", "--variant", VARIANT)):
        ran = run(*command)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
        assert GATE_ENTRY in ran.err


def test_a_gate_that_contradicts_the_metadata(demo_folder, tmp_path):
    path, _ = porter.convert(demo_folder, tmp_path / "a.safetensors", layout="slim")
    found = load_artifact(path)
    from porter.artifacts.artifact import save_artifact

    found.arrays[GATE_ENTRY] = np.array(0.2)
    save_artifact(path, found, force=True)
    with pytest.raises(ArtifactError, match=r"says 0\.2, its metadata 0\.16667"):
        porter.create_model(VARIANT, path)


def test_slims_weights_under_timms_metadata(demo_folder, tmp_path):
    """What `state.update(model.state_dict())` makes of a file's state dict: its metadata stays."""
    state = torch.load(porter.convert(demo_folder, tmp_path / "a.pth")[0], weights_only=True)
    state.update(porter.create_model(VARIANT, demo_folder, layout="slim").state_dict())
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(ArtifactError, match=r"says 0\.16667, its metadata 0\.166667"):
        porter.create_model(VARIANT, tmp_path / "b.pth")


def test_another_gate_is_folded_too(demo_folder, tmp_path):
    """A state dict counts by what it says, be it neither slim's gate nor 1/6."""
    plain = load_artifact(porter.convert(demo_folder, tmp_path / "plain.pth")[0]).tensors
    torch.save({**plain, GATE_ENTRY: torch.tensor(0.2).double()}, tmp_path / "own.pth")
    one, other = (porter.create_model(VARIANT, tmp_path / "own.pth", layout=layout) for layout in ("timm", "slim"))
    assert other.network.gate == pytest.approx(0.2)
    assert furthest(logits(one), logits(other)) < 1e-5
    assert furthest(logits(one), logits(porter.create_model(VARIANT, tmp_path / "plain.pth"))) > 1e-3


def test_artifacts_of_9ccb27a(tmp_path):
    """In layout slim they have no entry for the gate; their metadata says it."""
    data = Path(__file__).parent / "data" / "9ccb27a"
    expected = logits(porter.create_model("tiny", data / "timm.safetensors", mapping=data / "tiny.yaml"))
    for name in ("slim.safetensors", "slim.pth", "timm.pth"):
        shutil.copy(data / name, tmp_path)
        for layout in (None, "slim", "timm"):
            found = porter.create_model("tiny", tmp_path / name, mapping=data / "tiny.yaml", layout=layout)
            assert furthest(logits(found), expected) < 1e-5, (name, layout)


@pytest.mark.slow
def test_a_model_of_8_bits(trained, tmp_path, timm, run):
    """Its state dict has no ranges, so it is not opened as a float network without a word."""
    model = porter.create_model(VARIANT, trained)
    torch.save(model.state_dict(), tmp_path / "sd.pth")
    with pytest.raises(PorterError, match="of a model that computes 8 bits, without the ranges"):
        porter.create_model(VARIANT, tmp_path / "sd.pth")
    (tmp_path / "x.png").write_bytes(b"")
    ran = run("predict", tmp_path / "sd.pth", tmp_path / "x.png", "--variant", VARIANT)
    assert "To open its float network use --no-fake-quant" in ran.err
    plain = porter.create_model(VARIANT, tmp_path / "sd.pth", fake_quant=False)
    assert next(plain.parameters()).dtype == torch.float32
    with pytest.raises(RuntimeError, match="computes_8_bits"):
        timm.create_model(f"tf_mobilenetv3_{VARIANT}", num_classes=21).load_state_dict(model.state_dict())
    exported = torch.export.export(model, (torch.zeros(1, 3, 96, 96).double(),)).state_dict
    torch.save(dict(exported), tmp_path / "exported.pth")
    with pytest.raises(PorterError, match="of a model that computes 8 bits, without the ranges"):
        porter.create_model(VARIANT, tmp_path / "exported.pth")
    with pytest.raises(RuntimeError, match="weights of a float network, and this model computes 8 bits"):
        model.load_state_dict(porter.create_model(VARIANT, trained, fake_quant=False, layout="slim").state_dict())
    again = porter.create_model(VARIANT, trained)
    again.load_state_dict(model.state_dict())
    assert furthest(logits(again), logits(model)) < 1e-12


def test_another_pooling_than_that_of_its_own_mapping_file_is_said(tmp_path):
    own = {"mapping": tmp_path / "own.yaml"}
    own["mapping"].write_text("base: small_075.yaml\nvariant: own\nnetwork: {pooling: max}\n")
    write_bundle(tmp_path / "model-1", random_variables(load_mapping(own["mapping"]), 3))
    model = porter.create_model("own", tmp_path / "model-1", **own)
    model.reset_classifier(3, "avg")
    torch.save(model.state_dict(), tmp_path / "saved.pth")
    assert torch.equal(logits(porter.create_model("own", tmp_path / "saved.pth", **own)), logits(model))
