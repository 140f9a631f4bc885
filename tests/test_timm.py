"""Our artifacts in timm's own classes."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
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
