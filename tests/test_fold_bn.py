"""--fold-bn: the same function without batch norms."""

import pytest
import torch

import porter
from porter.mapping.files import list_variants
from porter.parity.demo import write_demo_checkpoint


@pytest.mark.parametrize("variant", list_variants())
@pytest.mark.parametrize("layout", ["timm", pytest.param("slim", marks=pytest.mark.slow)])
def test_same_function(tmp_path, run, variant, layout):
    source = write_demo_checkpoint(tmp_path, variant)
    for name, options in (("plain", []), ("folded", ["--fold-bn"])):
        ran = run("convert", source, "-o", tmp_path / f"{name}.pth", "--layout", layout, *options)
        assert ran.code == 0, ran.err
    plain, folded = (porter.create_model(variant, tmp_path / f"{name}.pth") for name in ("plain", "folded"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, 3, 97, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = plain(images), folded(images)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.tensorflow
def test_parity_in_float64(tf, demo_folder):
    verdict = porter.verify(demo_folder, fold_bn=True, reference="tf.nn", dtype="float64", sizes=[(65, 80)])
    assert verdict.passed


def test_gate_fold_is_undone_bit_for_bit(tmp_path, demo_folder, run):
    for layout in ("timm", "slim"):
        run("convert", demo_folder, "-o", tmp_path / f"{layout}.pth", "--layout", layout, "--fold-bn")
    undone = porter.create_model("small_075", tmp_path / "timm.pth", layout="slim").state_dict()
    untouched = torch.load(tmp_path / "slim.pth", weights_only=True)
    assert all(torch.equal(undone[name], value) for name, value in untouched.items())
