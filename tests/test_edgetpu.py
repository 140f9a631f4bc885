"""MobilenetEdgeTPU: the published size of the network, timm's architecture, TensorFlow's numbers."""

import pytest
import torch
from slim_graph import frozen

import porter
from porter.parity.demo import write_demo_checkpoint


@pytest.fixture(params=["edgetpu_075", pytest.param("edgetpu_100", marks=pytest.mark.slow)])
def made(request, tmp_path):
    return request.param, write_demo_checkpoint(tmp_path, request.param)


# slim/nets/mobilenet/README.md: 990 M and 624 M multiply-accumulates at 224
@pytest.mark.parametrize(("variant", "millions"), [("edgetpu_100", 990), ("edgetpu_075", 624)])
def test_multiply_accumulates_are_the_published_ones(variant, millions):
    model = porter.create_model(variant)
    total = 0

    def count(module, _args, out):
        nonlocal total
        total += out.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert total // 1_000_000 == millions


@pytest.mark.tensorflow
def test_parity(tf, made, tmp_path, run):
    variant, folder = made
    ran = run("convert", folder, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert f"variant   {variant} (found from the shapes)" in ran.out
    verdict = porter.verify(folder, tmp_path / "a.pth", sizes=[(97, 65)])
    assert verdict.passed
    assert porter.verify(folder, tmp_path / "a.pth", dtype="float64", sizes=[(65, 64)]).passed


@pytest.mark.tensorflow
def test_all_of_its_frozen_graph_is_compared(tf, tmp_path):
    """It has one pooling, under the name of the second that MobileNetV3 has; and at sizes that its window does not fit."""
    source = write_demo_checkpoint(tmp_path, "edgetpu_075")
    variables = {name: values.read() for name, values in porter.open_checkpoint(source).items()}
    (tmp_path / "frozen.pb").write_bytes(frozen(tf, variables, "edgetpu_075").SerializeToString())
    verdict = porter.verify(tmp_path / "frozen.pb", sizes=[(97, 65)])
    assert verdict.passed, verdict.sentence()
    assert verdict.missing == []
    assert "global_pool" in {row.endpoint for row in verdict.rows}


def test_export_brings_it_back(made, tmp_path, run):
    _, folder = made
    run("convert", folder, "-o", tmp_path / "a.pth")
    assert run("export-tf", tmp_path / "a.pth", tmp_path / "out").code == 0
    run("convert", tmp_path / "out", "-o", tmp_path / "b.pth")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_timm_takes_the_weights(timm):
    """Its class puts a ReLU behind the first projection, which slim's network has not: names and shapes alone."""
    ours = porter.create_model("edgetpu_100").state_dict()
    theirs = timm.create_model("mobilenet_edgetpu_100")
    assert list(theirs.state_dict()) == list(ours)
    theirs.load_state_dict(ours, strict=True)


def test_features(made):
    variant, folder = made
    model = porter.create_model(variant, folder, features_only=True)
    maps = model(torch.zeros(1, 3, 96, 96))
    assert [96 // m.shape[-1] for m in maps] == model.reductions == [2, 4, 8, 16, 32]
    assert [m.shape[1] for m in maps] == model.channels
