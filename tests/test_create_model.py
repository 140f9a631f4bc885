"""``create_model``: what it refuses, what it finds by itself, and where it is like timm's."""

from pathlib import Path

import numpy as np
import pytest
import torch

import porter
from porter.errors import PorterError
from porter.models.mobilenet_v3 import initialize

ROOT = Path(__file__).parents[1]


def test_a_checkpoints_prefix_is_a_source(demo_folder):
    index = next(demo_folder.rglob("*.index"))
    assert porter.create_model(index.with_suffix("")).num_classes == 1000


def test_a_map_has_no_classes():
    model = porter.create_model("small_075", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="give global_pool as well"):
        model.reset_classifier(5)
    model.reset_classifier(5, "avg")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "TIMM"}, "layout='TIMM': use one of None, 'timm', 'slim'"),
        ({"layout": "Slim"}, "layout='Slim'"),
        ({"layout": "keras"}, "layout='keras'"),
        ({"weights": "best"}, "weights='best': use one of 'auto', 'ema', 'raw'"),
        ({"dropout": 2}, "dropout=2: use a probability"),
        ({"in_chans": 0}, "in_chans=0: use a whole number from 1 on"),
        ({"num_classes": -1}, "num_classes=-1: use a whole number from 0 on"),
        ({"out_indices": (1,)}, "only with features_only=True"),
        ({"features_only": True, "out_indices": (9,)}, "out_indices: 9 is none of 0 to 4"),
        ({"fake_quant": "yes"}, "fake_quant='yes'"),
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_arguments(demo_folder, options, message, trained):
    with pytest.raises(PorterError) as raised:
        porter.create_model("small_075", demo_folder if trained else None, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize("kind", ["max", "avg", ""])
def test_one_image_gives_what_it_gives_in_a_batch(demo_folder, kind):
    model = porter.create_model("small_075", demo_folder).double()
    model.reset_classifier(0 if not kind else 10, kind)
    images = torch.rand(3, 3, 65, 96, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        batch, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, batch, rtol=0, atol=1e-12 * float(batch.abs().max()))


@pytest.mark.parametrize("variant", ["lraspp_small", "ssdlite_small"])
def test_only_a_classifier_gives_an_embedding(variant):
    with pytest.raises(PorterError, match="num_classes=0: only a classifier gives an embedding"):
        porter.create_model(variant, num_classes=0)


def test_a_stage_of_two_resolutions_gives_its_last_map(tmp_path):
    rows = [
        f"{{stage: {n}, kernel: 3, expansion: 2, out: {8 * n + 8}, se: false, activation: relu, stride: 2}}"
        for n in (0, 0, 1)
    ]
    table = f"{{stem: {{kernel: 3, stride: 2, out: 8, activation: relu}}, blocks: [{', '.join(rows)}], last: null, head: null}}"
    (tmp_path / "own.yaml").write_text(f"base: small_100.yaml\nvariant: own\nnetwork: {table}\n")
    model = porter.create_model("own", mapping=tmp_path / "own.yaml", features_only=True)
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    assert [one.shape[2] for one in maps] == [64 // r for r in model.feature_info.reduction()] == [32, 8, 4]
    assert [one.shape[1] for one in maps] == model.feature_info.channels() == [8, 8, 16]


def test_maps_come_in_the_order_asked_for(demo_folder):
    model = porter.create_model("small_075", demo_folder, features_only=True, out_indices=(4, 2))
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == model.channels == model.feature_info.channels() == [432, 24]
    assert model.feature_info.reduction() == [32, 8]
    assert model.feature_info.module_name(0) == "blocks.5"


@pytest.fixture
def artifact(demo_folder, tmp_path):
    return porter.convert(demo_folder, tmp_path / "small.pth")[0]


def test_the_variant_is_found(artifact, demo_folder):
    x = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        expected = porter.create_model("small_075", artifact)(x)
        assert torch.equal(porter.create_model(str(artifact))(x), expected)
        assert torch.equal(porter.create_model("tf_mobilenetv3_small_075", artifact)(x), expected)
        assert porter.create_model(str(demo_folder)).num_classes == 1000
    with pytest.raises(
        PorterError, match="unknown variant 'nothing'; there are\n  classifiers: edgetpu_075, edgetpu_100,"
    ):
        porter.create_model("nothing")


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: {f"module.{n}": v for n, v in s.items()}, "names without module."),
        (lambda s: {"model": s, "epoch": 3}, "entry model"),
        (lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}}, "entry state_dict, names without module."),
        (lambda s: {"state_dict": {n: v * 0 for n, v in s.items()}, "state_dict_ema": s}, "entry state_dict_ema"),
        (lambda s: {"model_ema": s, "model": {}}, "entry model_ema"),
        (lambda s: {"model": {f"_orig_mod.{n}": v for n, v in s.items()}}, "names without _orig_mod."),
    ],
)
def test_training_checkpoints(artifact, tmp_path, wrap, note, run):
    state = dict(torch.load(artifact, weights_only=True))
    torch.save(wrap(state), tmp_path / "training.pth")
    with pytest.warns(UserWarning, match=note):
        model = porter.create_model("small_075", tmp_path / "training.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert note in run("diff", tmp_path / "training.pth", artifact).err


def test_a_whole_model(tmp_path, run):
    torch.save(porter.create_model("small_075"), tmp_path / "whole.pth")
    ran = run("inspect", tmp_path / "whole.pth")
    assert ran.code == 2
    assert "holds Python objects (porter.models.mobilenet_v3.MobileNetV3)" in ran.err
    assert ran.err.count("\n") == 1
    assert "\x1b" not in ran.err


def test_like_timms(timm, demo_folder):
    ours = porter.create_model("small_075", demo_folder)
    theirs = timm.create_model("tf_mobilenetv3_small_075")
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    assert ours.get_classifier() is ours.classifier
    config, wanted = (timm.data.resolve_model_data_config(model) for model in (ours, theirs))
    for key in ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode"):
        assert config[key] == wanted[key], key
    x = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        embedding = ours.forward_head(ours.forward_features(x), pre_logits=True)
        assert torch.equal(ours.classifier(embedding), ours(x))
    pyramid = timm.create_model("tf_mobilenetv3_small_075", features_only=True)
    assert ours.feature_info.channels() == pyramid.feature_info.channels()
    assert ours.feature_info.reduction() == pyramid.feature_info.reduction()
    ours.reset_classifier(7)
    assert ours(x).shape == (1, 7)
    ours.reset_classifier(0)
    assert ours(x).shape == (1, 1024)
    assert ours.default_cfg is ours.pretrained_cfg


def test_symbolic_trace(demo_folder):
    model = porter.create_model("small_075", demo_folder)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 97, 130)).astype("f"))
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.slow
def test_export_with_named_sizes(demo_folder):
    model = porter.create_model("small_075", demo_folder)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 97, 130)).astype("f"))
    dims = {0: torch.export.Dim("batch")}
    dims |= {axis: torch.export.Dim(name, min=64, max=2048) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(model, (torch.zeros(3, 3, 224, 192),), dynamic_shapes=(dims,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((1, 3, 64, 64), "f"), r"takes a tensor of \(N, 3, H, W\), not ndarray"),
        (torch.zeros(1, 64, 64, 3), "NHWC\\? use x.permute"),
        (torch.zeros(3, 64, 64), "one image\\? use x\\[None\\]"),
        (torch.zeros(1, 1, 64, 64), r"not \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "8-bit RGB: x / 127.5 - 1"),
    ],
)
def test_wrong_inputs(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        porter.create_model("small_075")(given)


def test_the_package_tells_what_it_has():
    assert set(porter.__all__) == set(dir(porter))
    assert all(hasattr(porter, name) for name in porter.__all__)
    assert porter.list_variants()[2:5] == ("large_075", "large_100", "large_minimal_100")
    assert porter.PorterError is PorterError


@pytest.mark.slow
def test_types(tmp_path):
    """What mypy knows of the two kinds of model."""
    from mypy import api

    (tmp_path / "user.py").write_text(
        "import porter\n"
        "reveal_type(porter.create_model('small_075'))\n"
        "reveal_type(porter.create_model('small_075', features_only=True))\n"
    )
    said, _, _ = api.run([str(tmp_path / "user.py"), "--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache'}"])
    kinds = [line.rpartition(".")[2].rstrip('"') for line in said.splitlines() if "Revealed type" in line]
    assert kinds == ["MobileNetV3", "MobileNetV3Features"], said


def test_untrained_weights_are_truncated_normal():
    """As torch draws them."""
    layer, torchs = torch.nn.Linear(1000, 500), torch.empty(500, 1000)
    torch.manual_seed(0)
    initialize(layer)
    torch.nn.init.trunc_normal_(torchs, std=0.09, a=-0.18, b=0.18)
    found, expected = (values.detach().flatten().sort().values for values in (layer.weight, torchs))
    assert found.abs().max() <= torch.tensor(0.18)
    assert (found - expected).abs().max() < 1e-3
    assert not layer.bias.any()
