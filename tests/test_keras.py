"""Keras's files, written by Keras itself: names, values, parity with Keras running them."""

import functools

import h5py
import numpy as np
import pytest
import torch
from conftest import same_bits
from keras_models import VARIANT, build

import porter
from porter.errors import CheckpointError
from porter.mapping.apply import carry_out
from porter.port import plan_port
from porter.sources import open_checkpoint

pytestmark = pytest.mark.tensorflow
SIDE = 96  # of the images that the models take
SIX = ("large_075", "large_100", "large_minimal_100", "small_075", "small_100", "small_minimal_100")


@pytest.fixture(scope="session")
def keras(tf):
    return tf.keras  # Keras 3


@pytest.fixture(scope="session")
def keras2():
    return pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def models(keras, request):
    """Release of Keras -> a model of it."""
    return functools.cache(
        lambda release: build(keras if release == 3 else request.getfixturevalue("keras2"), side=SIDE)
    )


FORMATS = {
    "Keras 3 .keras": (3, "m.keras", "save"),
    "Keras 3 .weights.h5": (3, "m.weights.h5", "save_weights"),
    "Keras 3 .h5, whole model": (3, "m.h5", "save"),
    "Keras 2 .keras": (2, "m.keras", "save"),
    "Keras 2 .weights.h5": (2, "m.weights.h5", "save_weights"),
    "Keras 2 .h5, whole model": (2, "m.h5", "save"),
    "Keras 2 .h5, weights": (2, "w.h5", "save_weights"),
    "Keras 2 SavedModel": (2, "saved", "save"),
    "Keras 2 TensorFlow checkpoint": (2, "ckpt/w", "save_weights"),
}


QUICK = ("Keras 3 .keras",)


@pytest.fixture(scope="module", params=[pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FORMATS])
def source(request, models, tmp_path_factory):
    release, name, how = FORMATS[request.param]
    folder = tmp_path_factory.mktemp("keras")
    (folder / "ckpt").mkdir()
    path = folder / name
    getattr(models(release), how)(str(path))
    return release, path


def test_inspect_convert_verify(source, models, run, tmp_path):
    _, path = source
    assert f"variant   {VARIANT}, 11 classes" in run("inspect", path).out
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "none left over" in ran.out
    assert porter.create_model(tmp_path / "a.pth").bn1.momentum == pytest.approx(0.001)  # Keras's, and not slim's
    verdict = porter.verify(path, tmp_path / "a.pth")
    own = "SavedModel (" if (path / "saved_model.pb").is_file() else "tf.nn"
    assert verdict.reference.startswith("Keras " if path.is_file() else own)
    assert verdict.passed
    assert len(verdict.worst_rows()) >= 45
    assert porter.verify(path, tmp_path / "a.pth", reference="tf.nn", dtype="float64", sizes=[(65, 80)]).passed


def test_predictions_are_those_of_the_keras_that_wrote_it(source, models):
    """Without Keras's loader in between: the model in memory."""
    release, path = source
    images = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32)
    expected = np.asarray(models(release)(images, training=False))
    model = porter.create_model(VARIANT, path)
    with torch.no_grad():
        found = model(torch.from_numpy(images / 127.5 - 1).permute(0, 3, 1, 2)).softmax(1).numpy()
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=() if v == "small_minimal_100" else pytest.mark.slow) for v in SIX if v != VARIANT],
)
def test_all_variants(keras, tmp_path, variant):
    path = tmp_path / "m.weights.h5"
    build(keras, variant).save_weights(path)
    assert plan_port(path).plan.variant == variant
    assert porter.verify(path).passed


@pytest.mark.slow
@pytest.mark.parametrize("release", [2, 3])
def test_without_top_is_a_feature_extractor(keras, keras2, tmp_path, release, run):
    """The layout of ``_no_top_v2`` files: nothing after the last convolution."""
    kwargs = {"include_top": False, "include_preprocessing": False}
    model = build(keras if release == 3 else keras2, **kwargs)
    path = tmp_path / "notop.h5"
    model.save(path)
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "classes   0" in ran.out
    images = np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False)).transpose(0, 3, 1, 2)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    extractor = porter.create_model(VARIANT, tmp_path / "a.pth")
    with torch.no_grad():
        assert np.abs(extractor.forward_features(inputs).numpy() - expected).max() < 1e-5 * np.abs(expected).max()
        pyramid = porter.create_model(VARIANT, tmp_path / "a.pth", features_only=True)(inputs)
        assert np.abs(pyramid[-1].numpy() - expected).max() < 1e-5 * np.abs(expected).max()
        assert porter.create_model(VARIANT, tmp_path / "a.pth", num_classes=7)(inputs).shape == (1, 7)
    assert porter.verify(path, tmp_path / "a.pth").passed


@pytest.mark.slow
def test_older_layout_without_top_keeps_the_head(models, keras2, tmp_path):
    """Before ``_v2`` the files without top held Conv_2 as well: Keras 2's layers without the last."""
    whole = models(2)
    path = tmp_path / "notop.h5"
    keras2.Model(whole.input, whole.get_layer("Conv_2").output).save_weights(path)
    port = plan_port(path)
    assert (port.classes, port.network.embedding) == (0, 1024)
    model = porter.create_model(VARIANT, path)
    assert porter.verify(path).passed
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1024)


@pytest.mark.parametrize("release", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_values_are_keras_own(models, tmp_path, release):
    model, path = models(release), tmp_path / "m.h5"
    model.save(path)
    expected = {w.path if release == 3 else w.name.split(":")[0]: np.asarray(w) for w in model.weights}
    opened = open_checkpoint(path)
    assert set(opened) == set(expected)
    assert all(same_bits(opened[name].read(), value) for name, value in expected.items())


def test_optimizer_state_is_set_aside(keras, tmp_path):
    """Of any network; test_strangers.py ports files that have it."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 1)])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    opened = open_checkpoint(tmp_path / "m.keras")
    assert set(opened.set_aside.values()) == {"optimizer state"}
    assert len(opened) == 4


@pytest.mark.slow
def test_same_state_dict_from_every_layout(keras, tmp_path):
    model = build(keras)
    names = ("m.keras", "m.h5", "m.weights.h5")
    for name in names:
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
    ports = [plan_port(tmp_path / name) for name in names]
    first, *others = [carry_out(port.plan, port.checkpoint).arrays for port in ports]
    for other in others:
        assert list(other) == list(first)
        assert all(same_bits(other[name], value) for name, value in first.items())


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "too large", "strings"])
def test_hostile_hdf5(tmp_path, kind):
    """Nothing outside the file is read, nothing far beyond its size allocated."""
    path = tmp_path / "m.weights.h5"
    (tmp_path / "secret").write_bytes(b"secret!!" * 100)
    with h5py.File(path, "w") as file:
        layer = file.create_group("layers/conv2d/vars")
        if kind == "external link":
            layer["0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        elif kind == "soft link":
            layer["0"] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            layer.create_dataset("0", (100,), "f8", external=[(str(tmp_path / "secret"), 0, 800)])
        elif kind == "too large":
            layer.create_dataset("0", (1 << 28,), "f4", chunks=(1 << 16,), compression="gzip")
        else:
            layer.create_dataset("0", data=b"text")
    with pytest.raises(CheckpointError, match="m.weights.h5"):
        open_checkpoint(path)


def test_hdf5_without_weights(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(CheckpointError, match=r"x\.h5: an HDF5 file without Keras weights in it"):
        open_checkpoint(tmp_path / "x.h5")


def test_truncated(models, tmp_path):
    path = tmp_path / "m.keras"
    models(3).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"m\.keras"):
        open_checkpoint(path)


def test_a_class_of_ones_own(keras, tmp_path):
    """Its configuration lists no layers: KerasHub's backbones have one."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Conv2D(4, 1)

        def call(self, images):
            return self.first(images)

    model = Own()
    model(np.zeros((1, 8, 8, 3), "f"))
    model.save(tmp_path / "m.keras")
    opened = open_checkpoint(tmp_path / "m.keras")
    assert sorted(variable.shape for variable in opened.values()) == [(1, 1, 3, 4), (4,)]
