"""--fold-bn: the same function without batch norms."""

import copy
from pathlib import Path

import pytest
import torch
from quantized_checkpoint import VARIANT

import porter
from porter.errors import ArtifactError
from porter.mapping.files import list_networks, list_variants, load_variant
from porter.parity.demo import write_demo_checkpoint

PORTS = Path(__file__).parent / "ports.py"
FOLDED = ("small_075", "large_minimal_100", "edgetpu_075", "lraspp_small", "ssdlite_small")  # the slow suite: all


@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        pytest.param(
            *(variant, layout),
            marks=() if (variant, layout) in (("small_075", "timm"), ("edgetpu_075", "timm")) else pytest.mark.slow,
        )
        for variant in list_variants()
        for layout in ("timm", "slim")
    ],
)
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


def with_statistics(variant, **options):
    """An untrained network whose batch norms do something."""
    model = porter.create_model(variant, **options)
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5, generator=draw)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.3, generator=draw)
    return model


def outputs(model, images):
    with torch.no_grad():
        found = model(images)
    return list(found) if isinstance(found, (tuple, list)) else [found]


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        *(
            pytest.param(
                variant,
                {"num_classes": 7} if load_variant(variant).head else {},
                marks=() if variant in FOLDED else pytest.mark.slow,
            )
            for variant in list_networks()
        ),
        *(("small_075", options) for options in ({"features_only": True}, {"layout": "slim"})),
    ],
)
def test_fold_gives_the_same(variant, options):
    """Every network with its head, on odd and even sides."""
    model = with_statistics(variant, **options)
    kept = copy.deepcopy(model.state_dict())
    folded = porter.fold(model.double())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    for size in ((65, 80), (64, 81)):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for ours, theirs in zip(outputs(folded, images), outputs(model, images), strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-12 * float(theirs.abs().max())
    assert all(torch.equal(value, kept[name].to(value.dtype)) for name, value in model.state_dict().items())


def test_a_folded_models_state_dict_is_its_parameters(three_blocks_model):
    """So averages of it, functional calls and optimizers of a reopened one are right."""
    folded = porter.fold(three_blocks_model)
    own = dict(folded.named_parameters())
    assert {name: value.data_ptr() for name, value in folded.state_dict().items() if name in own} == {
        name: value.data_ptr() for name, value in own.items()
    }
    x = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        expected = folded(x)
        for program in (torch.jit.script(folded), torch.jit.trace(folded, torch.randn(2, 3, 64, 64))):
            torch.testing.assert_close(program(x), expected)


def test_state_dict_is_that_of_convert(tmp_path, demo_folder):
    path, _ = porter.convert(demo_folder, tmp_path / "a.pth", fold_bn=True)
    stored = torch.load(path, weights_only=True)
    found = porter.create_model("small_075", demo_folder, fold_bn=True).state_dict()
    assert list(found) == list(stored)
    for name, value in found.items():
        torch.testing.assert_close(value, stored[name], rtol=1e-6, atol=1e-7)
    torch.save(found, tmp_path / "b.pth")
    again = porter.create_model("small_075", tmp_path / "b.pth", fold_bn=True).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in found.items())


def test_training_keeps_the_zeros():
    model = porter.fold(with_statistics("small_075")).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    other = porter.fold(with_statistics("small_075"))
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(outputs(other, images), outputs(model.eval(), images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_verdict_of_fold(tf, shared, monkeypatch):
    """In both precisions, with every endpoint."""
    source = shared / "v3-small_224_0.75_float"
    monkeypatch.setenv("VARIANT", "small_075")
    monkeypatch.setenv("SOURCE", str(source))
    verdict = porter.verify(source, f"{PORTS}:folded", sizes=[(96, 96), (65, 80)])
    assert verdict.passed, verdict.failure()
    assert len(verdict.worst_rows()) > 40
    assert "float32 as exact as TensorFlow's" in verdict.sentence()


def test_what_cannot_be_folded(trained):
    with pytest.raises(ArtifactError, match="Linear: only what create_model gives"):
        porter.fold(torch.nn.Linear(2, 2))
    with pytest.raises(ArtifactError, match="computes 8 bits has nothing to fold"):
        porter.create_model(VARIANT, trained, fold_bn=True)
    model = porter.create_model("small_075")
    model.bn1 = torch.nn.GroupNorm(1, 16)
    with pytest.raises(ArtifactError, match="conv_stem: is a SameConv2d with a GroupNorm behind it"):
        porter.fold(model)
