"""Our artifacts in timm's own classes."""

import numpy as np
import pytest
import torch
from conftest import FILES

import porter
from porter.exports.convert import convert

try:
    from porter.models.timm_import import import_timm

    timm = import_timm()
except (ImportError, RuntimeError) as error:  # torchvision may refuse this torch
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)


def test_recorded_keys_are_this_timms():
    import json
    from pathlib import Path

    recorded = json.loads((Path(__file__).parent / "data" / "timm_keys.json").read_text())
    if recorded["timm"] != timm.__version__:
        pytest.skip(f"recorded with timm {recorded['timm']}, installed is {timm.__version__}")
    own = timm.create_model("tf_mobilenetv3_large_075").state_dict()
    assert recorded["keys"]["large_075"] == {name: list(value.shape) for name, value in own.items()}


@pytest.mark.parametrize(("released", "suffix"), FILES, indirect=["released"])
def test_timm_computes_what_tensorflow_computed(released, tmp_path, suffix):
    """strict=True, and the float32 bar on the logits: 1e-5 of their scale."""
    variant, folder = released
    path, _ = convert(folder, tmp_path / f"x{suffix}")
    model = timm.create_model(f"tf_mobilenetv3_{variant}").eval()
    if suffix == ".pth":
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    else:
        timm.models.load_checkpoint(model, str(path), strict=True)
    with np.load(folder / "expected.npz") as file:
        images, logits = file["input"], file["logits"][:, 1:]
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - logits).max() <= 1e-5 * np.abs(logits).max()


def test_without_the_fold_timm_is_far_off(released, tmp_path):
    """The reason for the fold: what a port that ignores the gate constant gets."""
    variant, folder = released
    if "minimal" in variant:
        pytest.skip("no squeeze-excite in it")
    path, _ = convert(folder, tmp_path / "x.pth", layout="slim")
    model = timm.create_model(f"tf_mobilenetv3_{variant}").eval()
    weights = torch.load(path, weights_only=True)
    with pytest.raises(RuntimeError, match='Unexpected key.* "squeeze_excite_gate_is_not_one_sixth"'):
        model.load_state_dict(weights)
    model.load_state_dict(weights, strict=False)
    with np.load(folder / "expected.npz") as file:
        images, logits = file["input"], file["logits"][:, 1:]
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - logits).max() > 3e-5 * np.abs(logits).max()


def test_features_are_timms(demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "x.pth")
    images = torch.rand(1, 3, 96, 128)
    theirs = timm.create_model("tf_mobilenetv3_small_075", features_only=True).eval()
    weights = torch.load(path, weights_only=True)
    theirs.load_state_dict({name: value for name, value in weights.items() if name in theirs.state_dict()})
    ours = porter.create_model("small_075", path, features_only=True)
    assert ours.channels == theirs.feature_info.channels()
    assert ours.reductions == theirs.feature_info.reduction()
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def both(**options):
    """Our network and timm's, of the same weights."""
    ours = porter.create_model("small_075", **options)
    theirs = timm.create_model("tf_mobilenetv3_small_075", **options).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 96).sin().reshape(2, 3, 64, 96)


@pytest.mark.parametrize("indices", [None, 2, [0, 4], [-1], [-2, 1]])
@pytest.mark.parametrize("only", [False, True])
def test_forward_intermediates(indices, only):
    ours, theirs = both()
    with torch.no_grad():
        found, expected = (
            one.forward_intermediates(IMAGES, indices, intermediates_only=only) for one in (ours, theirs)
        )
    if not only:
        torch.testing.assert_close(found[0], expected[0])
        found, expected = found[1], expected[1]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_stopping_early_and_all_stages():
    ours, _ = both()
    with torch.no_grad():
        [early] = ours.forward_intermediates(IMAGES, [1], stop_early=True, intermediates_only=True)
        _, every = ours.forward_intermediates(IMAGES, extra_blocks=True)
    assert len(every) == 1 + len(ours.blocks)
    assert torch.equal(early, every[1])
    with pytest.raises(ValueError, match="stop_early needs intermediates_only"):
        ours.forward_intermediates(IMAGES, stop_early=True)
    with pytest.raises(IndexError):
        ours.forward_intermediates(IMAGES, [9])


def test_wrappers_of_features():
    from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet

    ours, theirs = both()
    for kind in (FeatureListNet, FeatureHookNet, FeatureGetterNet):
        options = {"flatten_sequential": True} if kind is FeatureListNet else {}
        found = kind(ours, out_indices=(1, 4), **options)
        expected = porter.create_model("small_075", features_only=True, out_indices=(1, -1))
        expected.load_state_dict({n: v for n, v in ours.state_dict().items() if n in expected.state_dict()})
        with torch.no_grad():
            for a, b in zip(found(IMAGES), expected(IMAGES), strict=True):
                torch.testing.assert_close(a, b)
        assert found.feature_info.channels() == expected.feature_info.channels() == [16, 432]
    assert expected.feature_info.out_indices == (1, 4)
    assert ours.feature_info.get_dicts(["num_chs"], -1) == {"num_chs": 432}
    ours_dicts, their_dicts = ours.feature_info.get_dicts(), theirs.feature_info
    assert [one["num_chs"] for one in ours_dicts] == [one["num_chs"] for one in their_dicts]


@pytest.mark.parametrize(("kind", "classes"), [("max", 5), ("avg", 0), ("", 0)])
def test_pooling_can_be_chosen(kind, classes):
    ours, theirs = both()
    for model in (ours, theirs):
        model.reset_classifier(classes, kind)
    if classes:
        theirs.classifier.load_state_dict(ours.classifier.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))
        made = porter.create_model("small_075", num_classes=classes, global_pool=kind)
        made.load_state_dict(ours.state_dict())
        torch.testing.assert_close(made(IMAGES), ours(IMAGES))
    assert ours.num_classes == classes
    with pytest.raises(ValueError, match="global_pool='catavgmax': use avg, max"):
        ours.reset_classifier(0, "catavgmax")


def test_optimizers_with_layer_decay():
    from timm.optim import create_optimizer_v2

    ours, theirs = both()
    made = [create_optimizer_v2(m, "rmsproptf", lr=0.1, weight_decay=1e-5, layer_decay=0.8) for m in (ours, theirs)]
    scales = [
        {name: group["lr_scale"] for group in optimizer.param_groups for p in group["params"] for name in [names[p]]}
        for optimizer, names in ((o, {p: n for n, p in m.named_parameters()}) for o, m in zip(made, (ours, theirs)))
    ]
    assert scales[0] == scales[1]
    assert len(set(scales[0].values())) > 5
    assert ours.no_weight_decay() == set()


def test_checkpointing_changes_no_gradient_and_no_statistics():
    ours, _ = both()
    steps = {}
    for enable in (False, True):
        model = porter.create_model("small_075", dropout=0.0).double().train()
        model.load_state_dict(ours.state_dict())
        model.set_grad_checkpointing(enable)
        model(IMAGES.double()).square().mean().backward()
        steps[enable] = {n: p.grad for n, p in model.named_parameters()}
        steps[enable] |= {n: b for n, b in model.named_buffers() if "running" in n}
    assert steps[True].keys() == steps[False].keys()
    for name, value in steps[False].items():
        torch.testing.assert_close(steps[True][name], value, rtol=1e-12, atol=0)
    from timm.models import checkpoint_seq

    with torch.no_grad():
        x = ours.forward_stem(IMAGES)
        assert torch.equal(checkpoint_seq(ours.blocks, x), ours.blocks(x))


def test_paths_are_dropped_as_often_as_in_timm():
    ours = porter.create_model("small_075", drop_path_rate=0.2)
    theirs = timm.create_model("tf_mobilenetv3_small_075", drop_path_rate=0.2)
    for name, block in theirs.named_modules():
        if getattr(block, "has_skip", False):
            assert ours.get_submodule(name).drop_prob == pytest.approx(getattr(block.drop_path, "drop_prob", 0.0))
    torch.manual_seed(0)
    from porter.models.mobilenet_v3 import drop_path

    dropped = drop_path(torch.ones(10000, 1, 1, 1), 0.2, True)
    assert set(dropped.flatten().tolist()) == {0.0, 1.25}
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert torch.equal(drop_path(IMAGES, 0.2, False), IMAGES)
    with pytest.raises(porter.PorterError, match="drop_path_rate=2: use a probability"):
        porter.create_model("small_075", drop_path_rate=2)


def test_averages_and_data_config(demo_folder):
    from timm.data import resolve_data_config
    from timm.utils import ModelEmaV3

    ours = porter.create_model("small_075", demo_folder)
    averages = ModelEmaV3(ours, decay=0.5)
    with torch.no_grad():
        before = ours.classifier.bias.clone()
        ours.classifier.bias += 1
    averages.update(ours)
    torch.testing.assert_close(averages.module.classifier.bias, before + 0.5)
    config = resolve_data_config({}, model=ours)
    assert (config["input_size"], config["crop_pct"], config["mean"]) == ((3, 224, 224), 0.875, (0.5, 0.5, 0.5))
    assert porter.create_model("small_075", in_chans=1).conv_stem.weight.shape[1] == 1
