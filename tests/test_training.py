"""A step of training: the port and TensorFlow, and that the verifier notices what it is there to notice."""

import pytest
import torch
from conftest import FOLDERS, SOME
from random_networks import checkpoint_with_head

import porter
from porter.errors import PorterError
from porter.exports.convert import convert
from porter.parity.demo import write_demo_checkpoint
from porter.parity.references.training_step import GRADIENT

pytestmark = pytest.mark.tensorflow
SMALL = {"train": True, "dtype": "float64", "sizes": [(32, 32)]}
PYTHON = """
import torch, porter
def made():
    model = porter.create_model({path!r})
    {change}
    return model
"""


@pytest.fixture(scope="module")
def small(shared):
    return shared / FOLDERS["small_075"]


@pytest.mark.parametrize("variant", SOME)
def test_a_step_is_tensorflows(tf, shared, variant):
    verdict = porter.verify(shared / FOLDERS[variant], train=True)
    assert verdict.passed, verdict.sentence()
    assert verdict.reference == "tf.nn graph in training mode"
    names = [row.endpoint for row in verdict.rows]
    model = porter.create_model(variant)
    assert {n.removeprefix(GRADIENT) for n in names if n.startswith(GRADIENT)} == set(dict(model.named_parameters()))
    statistics = {name for name, _ in model.named_buffers() if "running" in name}
    assert set(names) == {*(n for n in names if n.startswith(GRADIENT)), *statistics, "Logits", "loss"}


def test_layouts_and_artifacts(tf, small, tmp_path):
    """A folded gate has other weights, and so other gradients; the background takes part in the loss if it is kept."""
    for layout, background in (("timm", True), ("slim", False)):
        path, _ = convert(small, tmp_path / f"{layout}.pth", layout=layout, keep_background=background)
        assert porter.verify(small, path, keep_background=background, **SMALL).passed
    with pytest.raises(PorterError, match=r"entry classifier.weight is \(1001, 1024\), the port has \(1000, 1024\)"):
        porter.verify(small, tmp_path / "timm.pth", **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lraspp_small", "ssdlite_small"])
def test_heads(tf, variant, tmp_path_factory):
    assert porter.verify(checkpoint_with_head(variant, tmp_path_factory), train=True).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplab_v3_small", "deeplab_v3_large", "ssd_v3_small"])
def test_heads_of_the_original_code(tf, unpacked, name):
    folder, _ = unpacked(name)
    assert porter.verify(folder / "model.ckpt-0", train=True).passed


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["edgetpu_075", "edgetpu_100"])
def test_edgetpu(tf, variant, tmp_path):
    assert porter.verify(write_demo_checkpoint(tmp_path, variant), train=True).passed


@pytest.mark.slow
def test_trained_weights_and_raw_ones(tf, shared, small):
    assert porter.verify(shared.parent / "real" / FOLDERS["small_100"], train=True).passed
    assert porter.verify(small / "pristine", weights="raw", train=True).passed


def kept(keras, layers):
    from test_strangers import base, filled

    return filled(keras.Sequential([base(keras), *layers]))


@pytest.mark.parametrize("momentum", [0.99, 0.9])
def test_keras_own_model(tf, tmp_path, momentum):
    """Random layers are off, and each batch norm has the momentum that the file states."""
    layers = tf.keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(9), layers.BatchNormalization()]
    model = kept(tf.keras, [*head, layers.ReLU(), layers.Dense(4, activation="softmax")])
    for layer in model._flatten_layers():
        if hasattr(layer, "momentum"):
            layer.momentum = 0.995
    model.layers[-3].momentum = momentum
    model.save(tmp_path / "m.keras")
    verdict = porter.verify(tmp_path / "m.keras", train=True, dtype="float64")
    assert verdict.reference.startswith("Keras 3")
    assert verdict.passed, verdict.sentence()
    ported = porter.create_model(str(tmp_path / "m.keras"))
    assert ported.bn1.momentum == pytest.approx(0.005)
    assert ported.classifier[1].momentum == pytest.approx(1 - momentum)


@pytest.mark.slow
def test_keras_2(tf, tmp_path):
    keras = pytest.importorskip("tf_keras")
    from keras_models import build

    build(keras).save(tmp_path / "m.keras")
    verdict = porter.verify(tmp_path / "m.keras", train=True)
    assert verdict.reference.startswith("Keras 2")
    assert verdict.passed, verdict.sentence()


def test_timms_momentum_is_named(tf, timm, small, tmp_path, run):
    """timm's class has another momentum: everything but the statistics is equal."""
    path, _ = convert(small, tmp_path / "x.pth")
    named = "timm:tf_mobilenetv3_small_075"
    ran = run("verify", "--train", "--dtype", "float64", "--size", "32", small, named, "--weights-file", path)
    assert ran.code == 1, ran.err
    assert "NO PARITY  small_075: in training, another function, from bn1.running_mean on" in ran.out
    assert "cause      batch norm momentum 0.1 instead of 0.003: with it, the statistics' difference is" in ran.out
    verdict = porter.verify(small, named, weights_file=path, **SMALL)
    assert all(("running" in row.endpoint) != row.passed for row in verdict.rows)


@pytest.mark.parametrize(
    ("change", "first", "cause"),
    [
        (
            "for m in model.modules(): setattr(m, 'momentum', 0.997)",
            "bn1.running_mean",
            ["batch norm momentum 0.997, TensorFlow's decay instead of 0.003"],
        ),
        ("se = model.blocks[2][0].se; se.gate.forward = lambda x: type(se.gate).forward(se.gate, x).detach()", "", []),
        ("model.bn1.train = lambda mode=True: model.bn1", "bn1.running_mean", []),
    ],
)
def test_faults_of_training_alone(tf, small, tmp_path, change, first, cause):
    """Each of these ports has parity at inference."""
    path, _ = convert(small, tmp_path / "x.pth")
    (tmp_path / "made.py").write_text(PYTHON.format(path=str(path), change=change))
    named = f"{tmp_path / 'made.py'}:made"
    assert porter.verify(small, named, dtype="float64", sizes=[(32, 32)]).passed
    verdict = porter.verify(small, named, **SMALL)
    assert not verdict.passed
    assert [what.what for what in verdict.causes] == cause
    if first:
        assert verdict.first_divergence().endpoint == first
    else:
        wrong = [row.endpoint for row in verdict.rows if not row.passed]
        assert all(name.startswith(GRADIENT) for name in wrong)
        assert GRADIENT + "blocks.2.0.se.conv_expand.weight" in wrong


def test_lost_precision_fails_on_every_batch(tf, small, tmp_path):
    path, _ = convert(small, tmp_path / "x.pth")
    change = "conv = model.conv_stem; conv.forward = lambda x: type(conv).forward(conv, x.bfloat16().to(x.dtype))"
    (tmp_path / "made.py").write_text(PYTHON.format(path=str(path), change=change))
    named = f"{tmp_path / 'made.py'}:made"
    verdict = porter.verify(small, named, train=True, dtype="float32", sizes=[(32, 32)])
    assert verdict.as_exact is False


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("v3-small_224_0.75_float.tflite", {}, "has no batch norms"),
        ("", {"fold_bn": True}, "has no batch norms"),
        ("", {"reference": "frozen"}, "is compared with tf.nn, or with a Keras file's own model"),
        ("", {"deployed": True}, "without deploy and images"),
    ],
)
def test_refusals(tf, small, source, options, message):
    with pytest.raises(PorterError, match=message):
        porter.verify(small / source, train=True, **options)


def test_a_program_has_no_gradients(tf, small, tmp_path):
    convert(small, tmp_path / "x.onnx")
    with pytest.raises(PorterError, match="has no gradients"):
        porter.verify(small, tmp_path / "x.onnx", train=True)


def test_other_names_are_refused(tf, small, tmp_path):
    (tmp_path / "made.py").write_text(
        "import torch\ndef made(): return torch.nn.Sequential(torch.nn.Conv2d(3, 9, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())"
    )
    with pytest.raises(PorterError, match="entry conv_stem.weight is missing"):
        porter.verify(small, f"{tmp_path / 'made.py'}:made", **SMALL)


def test_dropout_is_off(tf, small):
    """It would be another network at each step."""
    assert porter.create_model("small_075").dropout > 0
    torch.manual_seed(0)
    assert porter.verify(small, **SMALL).passed
