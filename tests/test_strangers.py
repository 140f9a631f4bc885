"""Files as strangers bring them: from raw pixels on, the port gives what the original does in its own runtime."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from slim_graph import frozen

import porter
from porter.errors import CheckpointError, MappingError, NotTheNetworkError
from porter.mapping.files import load_variant, standalone
from porter.mapping.stated import as_stated
from porter.models.build import probabilities
from porter.models.create import open_model
from porter.parity.demo import demo_variables
from porter.photos.images import normalized, read_image, resized
from porter.port import plan_port
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle
from porter.sources.stored_graph import StoredGraph, StoredOperation

pytestmark = [pytest.mark.tensorflow, pytest.mark.usefixtures("hdf5_here")]
SIDE = 64  # the last map has 2 x 2 positions
# Rounding of float32 in networks of random values, to the largest output
FLOAT = 1e-5


@pytest.fixture(scope="module")
def keras(tf):
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def keras2():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_USE_LEGACY_KERAS", "1")
        yield pytest.importorskip("tf_keras")


@pytest.fixture
def port(tmp_path):
    """Convert, open what was written, and give its outputs for 8-bit images through its documented preprocessing."""

    def port(source, pixels, what="predictions", **options):
        path, _ = porter.convert(source, tmp_path / "port.safetensors", force=True, **options)
        given = open_model(path).input
        x = torch.from_numpy(np.moveaxis(normalized(pixels, given.mean, given.std, given.levels), -1, 1).copy())
        model = porter.create_model(path)
        with torch.no_grad():
            if what == "map":
                return model.forward_features(x).permute(0, 2, 3, 1).numpy()
            return (probabilities(model.network, model(x)) if what == "predictions" else model(x)).numpy()

    return port


def slow(*values):
    """Cases that others show as well: for the whole suite only."""
    return [pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.slow) for value in values]


def pixels(count=3, channels=3):
    """Smooth images and noise, so that all differ in all their positions."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (count, 4, 4, channels)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return (coarse // 2 + random.integers(0, 128, coarse.shape)).astype(np.uint8)


def filled(model, images=None):
    """``model`` with values everywhere, and batch norms with the statistics of images, so that signals survive."""
    random = np.random.default_rng(0)
    values = []
    for weight in model.weights:
        last, shape = weight.name.rsplit("/", 1)[-1].split(":")[0], tuple(weight.shape)
        if last in ("mean", "variance", "count", "seed_generator_state"):
            values.append(np.asarray(weight))  # of a Normalization, of a Dropout
        elif last == "gamma":
            values.append(random.uniform(0.5, 1.5, shape))
        elif last in ("beta", "bias", "moving_mean", "moving_variance"):
            values.append(random.uniform(0.1, 0.5, shape))
        else:
            fan_in = np.prod(shape[:2] if len(shape) == 4 and shape[3] == 1 else shape[:-1])
            values.append(random.normal(0, (1.5 / fan_in) ** 0.5, shape))
    model.set_weights([np.asarray(value) for value in values])
    norms = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_mean")]
    for norm in norms:
        norm.momentum = 0.0
    model((pixels(8) if images is None else images).astype(np.float32), training=True)
    for norm in norms:
        norm.momentum = 0.99
    return model


def base(keras, **options):
    """A MobileNetV3 without its classifier, the smallest unless ``options`` say otherwise."""
    options = {"minimalistic": True, "include_top": False, "input_shape": (SIDE, SIDE, 3)} | options
    return keras.applications.MobileNetV3Small(weights=None, **options)


def whole(keras, **options):
    """keras.applications' own classifier."""
    return base(keras, **{"include_top": True, "classes": 5} | options)


def theirs(model, images):
    return np.asarray(model(images.astype(np.float32), training=False), np.float32)


def same(ours, original, tolerance=FLOAT):
    assert ours.shape == original.shape
    scale = np.abs(original).max()
    assert np.ptp(original, 0).max() > 0.01 * scale, "the same for all images"
    assert np.abs(ours - original).max() <= tolerance * scale


def check(port, model, source, images=None, **options):
    images = pixels() if images is None else images
    same(port(source, images, **options), theirs(model, images))


def saved(model, path):
    model.save(path)
    return path


@pytest.fixture(scope="module")
def whole_model(keras):
    """keras.applications' own network with its classifier; read only by agreement."""
    return filled(whole(keras))


@pytest.fixture(scope="module")
def rescaled_model(keras):
    """The same behind a scaling of its own; read only by agreement."""
    return scaled(keras, keras.layers.Rescaling(1 / 255))


# Preprocessing


def scaled(keras, layer):
    """A classifier behind ``layer``, whose own preprocessing is off."""
    image = keras.Input((SIDE, SIDE, 3))
    return filled(whole(keras, include_preprocessing=False, input_tensor=layer(image), input_shape=None))


@pytest.mark.parametrize("given", ["adapted", "arithmetic", *slow("unit", "each", "numbers", "torchvision")])
def test_scaling_of_the_users_own(keras, port, tmp_path, given):
    layers = keras.layers
    if given == "adapted":
        layer = layers.Normalization()
        layer.adapt(pixels(8).astype("f"))
    else:
        layer = {
            "unit": lambda: layers.Rescaling(1 / 255),
            "arithmetic": lambda: lambda image: 2 * image / 255 - 1.1,
            "each": lambda: layers.Rescaling([0.01, 0.008, 0.007], [-1, -1.2, -0.5]),
            "numbers": lambda: layers.Normalization(mean=[120.0, 115, 100], variance=[3400.0, 3300, 3500]),
            "torchvision": lambda: keras.Sequential(
                [
                    layers.Rescaling(1 / 255),
                    layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.229**2, 0.224**2, 0.225**2]),
                ]
            ),
        }[given]()
    model = scaled(keras, layer)
    check(port, model, saved(model, tmp_path / "m.keras"))


@pytest.mark.slow
def test_scaling_of_keras(keras, port, tmp_path):
    model = filled(whole(keras, include_preprocessing=True, minimalistic=False))
    check(port, model, saved(model, tmp_path / "m.keras"))


# Heads


HEADS = {
    "dense": lambda layers: [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(5, "softmax")],
    "sigmoid": lambda layers: [layers.GlobalMaxPooling2D(), layers.Dense(4, activation="sigmoid")],
    "one": lambda layers: [layers.GlobalAveragePooling2D(keepdims=True), layers.Flatten(), layers.Dense(1, "sigmoid")],
    "flat": lambda layers: [layers.Flatten(), layers.Dense(6, "relu", use_bias=False), layers.Dense(3, "softmax")],
    "norms": lambda layers: [
        *(layers.GlobalAveragePooling2D(), layers.BatchNormalization(scale=False), layers.Dense(8)),
        *(layers.BatchNormalization(center=False, epsilon=1e-5), layers.Activation("swish"), layers.Dropout(0.5)),
        *(layers.Dense(6, "tanh"), layers.BatchNormalization(), layers.Dense(3), layers.Softmax()),
    ],
    "functions": lambda layers: [
        *(layers.GlobalMaxPooling2D(), layers.Dense(8, activation="elu"), layers.Dense(7, activation="relu6")),
        *(layers.ReLU(), layers.Dense(6, activation="hard_silu"), layers.Dense(3), layers.Activation("softmax")),
    ],
    "convolutions": lambda layers: [
        *(layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(8, 1, use_bias=False)),
        *(layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.2), layers.Conv2D(5, 1)),
        *(layers.Flatten(), layers.Softmax()),
    ],
    "more functions": lambda layers: [
        *(layers.GlobalAveragePooling2D(), layers.Dense(8, "gelu"), layers.Dense(8, "selu"), layers.Dense(8)),
        *(layers.LeakyReLU(0.1), layers.Dense(8, "leaky_relu"), layers.Dense(3, "softmax")),
    ],
}


@pytest.mark.parametrize(
    "head", ["more functions", "convolutions", *slow("norms", "flat", "dense", "sigmoid", "one", "functions")]
)
def test_heads_behind_a_base_in_the_model(keras, port, tmp_path, head):
    model = filled(keras.Sequential([base(keras), *HEADS[head](keras.layers)]))
    check(port, model, saved(model, tmp_path / "m.keras"))


@pytest.mark.parametrize(("head", "classes"), [("dense", 0), ("more functions", 6)])
def test_another_classifier_where_there_is_no_embedding(keras, tmp_path, head, classes):
    """It becomes what the model computes: convert missed the embedding, or gave a map that was not pooled."""
    onnxruntime = pytest.importorskip("onnxruntime")
    original = filled(keras.Sequential([base(keras), *HEADS[head](keras.layers)]))
    model, x = porter.create_model(saved(original, tmp_path / "m.keras")), torch.randn(3, 3, SIDE, SIDE)
    model.reset_classifier(classes)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    path, _ = porter.convert(tmp_path / "a.pth", tmp_path / "a.onnx")
    [found] = onnxruntime.InferenceSession(path).run(None, {"image": x.numpy()})
    with torch.no_grad():
        same(found, model(x).numpy())
        assert torch.equal(porter.create_model(tmp_path / "a.pth")(x), model(x))


def test_a_mapping_without_rules_for_a_heads_layers(keras, tmp_path, run):
    model = filled(keras.Sequential([base(keras), *HEADS["flat"](keras.layers)]))
    source = saved(model, tmp_path / "m.keras")
    mapping = plan_port(source).chosen
    rules = {section: rules for section, rules in mapping.rules.items() if section != "dense"}
    (tmp_path / "mine.yaml").write_bytes(standalone(msgspec.structs.replace(mapping, rules=rules)))
    ran = run("convert", source, "--mapping", tmp_path / "mine.yaml", "-o", tmp_path / "a.pth")
    assert ran.code == 2, ran.err
    assert "no rules.dense; copy this section" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("head", ["norms", "flat"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_heads_behind_layers_of_one_model(keras, port, tmp_path, head, suffix):
    trunk = base(keras)
    x = trunk.output
    for layer in HEADS[head](keras.layers):
        x = layer(x)
    model = filled(keras.Model(trunk.input, x))
    check(port, model, saved(model, tmp_path / f"m{suffix}"))


@pytest.mark.slow
def test_what_is_released_is_the_files_own(keras, tmp_path, run):
    """Its .onnx and .tflite have parity, and its card's example gives what Keras gives for the photo's pixels."""
    photo = pytest.importorskip("PIL.Image")
    layers, image = keras.layers, keras.Input((SIDE, SIDE, 3))
    x = base(keras, minimalistic=False, include_preprocessing=False)(layers.Rescaling(1 / 255)(image))
    for layer in (
        *(layers.GlobalMaxPooling2D(), layers.Dense(8), layers.BatchNormalization(), layers.Activation("silu")),
        *(layers.Dropout(0.2), layers.Dense(7, "sigmoid")),
    ):
        x = layer(x)
    model = filled(keras.Model(image, x))
    source, folder = saved(model, tmp_path / "m.keras"), tmp_path / "dist"
    ran = run("release", source, "--out", folder, "--onnx", "--tflite")
    assert (ran.code, ran.out.count("logits within")) == (0, 2), ran.err
    for form in folder.glob("*.onnx"), folder.glob("*.tflite"):
        assert run("verify", source, *form).code == 0
    assert run("release", "--check", folder).code == 0
    given = np.random.default_rng(0).integers(0, 256, (73, 73, 3)).astype(np.uint8)  # 64 / 0.875: nothing is resized
    photo.fromarray(given).save(tmp_path / "photo.png")
    [code, *_] = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    code = code.replace("photo.jpg", str(tmp_path / "photo.png")) + "\nprint(chances.tolist()[0])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    expected = np.sort(theirs(model, given[None, 4:68, 4:68]))[0, ::-1][:5]
    assert np.abs(np.array(json.loads(shown.stdout)) - expected).max() <= FLOAT


def test_augmentation_scaling_and_squeeze_excite(keras, port, tmp_path):
    """As Keras's guide to fine-tuning has it."""
    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(image))
    x = base(keras, minimalistic=False)(x, training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    model = filled(keras.Model(image, layers.Dense(5)(x)))
    check(port, model, saved(model, tmp_path / "m.keras"), what="logits")


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max", "classifier_activation": "sigmoid"},
        *slow({"pooling": "max"}, {"classifier_activation": None}),
    ],
)
def test_what_keras_applications_lets_one_choose(keras, port, tmp_path, options):
    model = filled(whole(keras, **options))
    what = "logits" if options.get("classifier_activation", "") is None else "predictions"
    check(port, model, saved(model, tmp_path / "m.keras"), what=what)


# Containers


def nested(keras):
    return filled(keras.Sequential([base(keras, pooling="avg"), *HEADS["norms"](keras.layers)[1:]]))


@pytest.fixture(scope="module")
def nested_model(keras):
    """A classifier with a head of its own around a base, compiled; read only by agreement."""
    return trained(keras, nested(keras))


def trained(keras, model):
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def of_weights(model, folder):
    model.save_weights(folder / "m.weights.h5")
    (folder / "m.json").write_text(model.to_json())
    return folder / "m.weights.h5"


def as_folder(model, folder):
    model.save(folder / "m", zipped=False)
    return folder / "m"


def as_shards(model, folder):
    model.save_weights(folder / "m.weights.json", max_shard_size=0.003)
    (folder / "m.json").write_text(model.to_json())
    return folder / "m.weights.json"


def as_checkpoint(model, folder):
    import tensorflow as tf

    return tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder / "c")


def as_saved_model(model, folder):
    model.export(folder / "m", verbose=False)
    return folder / "m"


def as_signature(model, folder, signature=None):
    """A SavedModel of one function alone: of a model, TensorFlow would trace and save all others as well."""
    import tensorflow as tf

    if signature is None:
        serve = tf.function(lambda images: model(images, training=False))
        signature = serve.get_concrete_function(tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32))
    kept = tf.Module()
    kept.values = [one if isinstance(one, tf.Variable) else one.value for one in model.variables]  # Keras 2, or 3
    tf.saved_model.save(kept, folder / "m", signatures=signature)
    return folder / "m"


CONTAINERS = {
    "h5": lambda model, folder: saved(model, folder / "m.h5"),
    "weights": of_weights,
    "folder": as_folder,
    "shards": as_shards,
    "checkpoint": as_checkpoint,
    "SavedModel": as_saved_model,
}


@pytest.mark.parametrize(
    ("kind", "container"),
    [
        *(("nested", "h5"), ("nested", "weights"), ("whole", "checkpoint")),
        *slow(("nested", "shards"), ("whole", "folder")),
        *slow(("nested", "SavedModel"), ("whole", "SavedModel"), ("whole", "h5"), ("whole", "weights")),
        *slow(("whole", "shards"), ("nested", "folder")),
    ],
)
def test_containers(keras, port, tmp_path, nested_model, container, kind):
    model = trained(keras, filled(whole(keras))) if kind == "whole" else nested_model
    check(port, model, CONTAINERS[container](model, tmp_path))


def mixed(keras):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return nested(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def adapted(keras):
    layer = keras.layers.Normalization()
    layer.adapt(pixels().astype(np.float32))
    return scaled(keras, layer)


SAVED_MODELS = {
    "adapted": adapted,
    "mixed precision": mixed,
    "silu": lambda keras: filled(
        keras.Sequential([base(keras, pooling="avg"), keras.layers.Dense(8, "silu"), keras.layers.Dense(5, "softmax")])
    ),
    **{
        head: lambda keras, head=head: filled(keras.Sequential([base(keras), *HEADS[head](keras.layers)]))
        for head in ("more functions", "convolutions")
    },
    "Rescaling": lambda keras: scaled(keras, keras.layers.Rescaling(1 / 255)),
}


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("adapted", as_signature),
        *slow(*((kind, as_saved_model) for kind in SAVED_MODELS)),
    ],
)
def test_a_saved_model_is_compared_from_the_pixel(keras, port, tmp_path, run, kind, written):
    model = SAVED_MODELS[kind](keras)
    path = written(model, tmp_path)
    if kind != "mixed precision":  # whose rounding to 16 bits the port does not have
        check(port, model, path)
    ran = run("verify", path)
    assert ran.code == 0, ran.out + ran.err
    assert "reference  SavedModel (m)" in ran.out
    assert "received   reference: 8-bit pixels as numbers from 0 to 255; port: " in ran.out


def served(tf, keras, kind):
    """A classifier, and the signatures that it is exported with."""
    one = {"classes": 1, "classifier_activation": "sigmoid"}  # Keras adds its bias as a number
    model = filled(whole(keras, **one)) if kind == "one class" else nested(keras)
    spec = tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32)

    def signature(function):
        return tf.function(function).get_concrete_function(spec)

    def labelled(images):
        chances = model(images, training=False)
        label = tf.gather(tf.constant([*"abc"]), tf.argmax(chances, -1))
        return {"chances": chances, "label": label, "top": tf.math.top_k(chances, 2).values}

    if kind == "labels":
        return model, signature(labelled)
    chances = signature(lambda images: model(images, training=False))
    if kind == "one class":
        return model, chances
    return model, {"a": signature(lambda images: model.layers[0](images, training=False)), "b": chances}


@pytest.mark.parametrize("kind", slow("labels", "one class", "several"))
def test_what_a_saved_model_serves(tf, keras, port, tmp_path, run, kind):
    model, signatures = served(tf, keras, kind)
    tf.saved_model.save(model, tmp_path / "m", signatures=signatures)
    check(port, model, tmp_path / "m")
    ran = run("verify", tmp_path / "m")
    assert (ran.code, "reference  SavedModel (m)" in ran.out) == (0, True), ran.out + ran.err


def frozen_function(tf, model, count=None):
    """What ``model`` does with ``count`` images, as a function without variables."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(lambda images: model(images, training=False))
    return convert_variables_to_constants_v2(
        function.get_concrete_function(tf.TensorSpec([count, SIDE, SIDE, 3], tf.float32))
    )


def test_a_frozen_graph_of_keras(tf, rescaled_model, port, tmp_path, run):
    """Its zeros around the image fit one size, and a number of 0 has no values in the file."""
    model = rescaled_model
    graph = frozen_function(tf, model).graph.as_graph_def()
    (tmp_path / "m.pb").write_bytes(graph.SerializeToString())
    check(port, model, tmp_path / "m.pb")
    ran = run("verify", tmp_path / "m.pb")
    assert (ran.code, "reference  frozen graph (m.pb)" in ran.out) == (0, True), ran.out + ran.err
    ran = run("verify", tmp_path / "m.pb", "--size", "96x96")
    assert ran.code == 2
    assert "64x64" in ran.err


@pytest.mark.slow
def test_a_step_of_training_with_a_head_of_ones_own(keras, tmp_path, run):
    nested(keras).save(tmp_path / "m.keras")
    ran = run("verify", tmp_path / "m.keras", "--train", "--reference", "tf.nn")
    assert (ran.code, "reference  tf.nn graph in training mode" in ran.out) == (0, True), ran.out + ran.err


@pytest.mark.slow
def test_a_saved_model_of_keras_2(keras2, port, tmp_path, run):
    model = nested(keras2)
    model.save(tmp_path / "m", save_format="tf")
    check(port, model, tmp_path / "m")
    ran = run("verify", tmp_path / "m")
    assert (ran.code, "reference  SavedModel (m)" in ran.out) == (0, True), ran.out + ran.err


@pytest.mark.parametrize("flipped", [False, *slow(True)])
def test_a_saved_model_that_reads_and_writes_files(tf, rescaled_model, port, tmp_path, run, flipped):
    """Its signature decodes JPEG files and gives classes as well; its scaling is behind the decoder.

    It also writes a file, and `verify` does not run that. What it does with pixels is not taken if it is not understood.
    """
    model = rescaled_model

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(files):
        images = tf.map_fn(
            lambda file: tf.image.resize(tf.cast(tf.image.decode_jpeg(file, channels=3), tf.float32), (SIDE, SIDE)),
            files,
            fn_output_signature=tf.float32,
        )
        images = images[..., ::-1] if flipped else images
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "written"), "x")]):
            scores = model(images)
        return {"classes": tf.argmax(scores, -1), "confidence": tf.reduce_max(scores, -1), "scores": scores}

    as_signature(model, tmp_path, serve)
    if flipped:
        assert "assumed   scaling" in run("convert", tmp_path / "m", "-o", tmp_path / "p.pth").out
        return
    check(port, model, tmp_path / "m")
    ran = run("verify", tmp_path / "m")
    assert (ran.code, "reference  SavedModel (m)" in ran.out) == (0, True), ran.out
    assert "port: 0 to 1, float32" in ran.out
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("form", ["keras", *slow("tflite", "SavedModel")])
def test_a_model_of_several_outputs(tf, keras, port, tmp_path, run, form):
    """The features come first, and the probabilities before the logits."""
    layers, image = keras.layers, keras.Input((SIDE, SIDE, 3))
    features = layers.GlobalAveragePooling2D()(base(keras)(image))
    logits = layers.Dense(5)(layers.Dense(8, "relu")(features))
    scores = layers.Softmax()(logits)
    model = filled(keras.Model(image, [features, scores, logits, keras.ops.argmax(scores, -1)]))
    path = tmp_path / "m.keras"
    if form == "tflite":
        path = tmp_path / "m.tflite"
        plain = keras.Model(image, [scores, logits])  # the converter puts the logits first
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(plain).convert())
    elif form == "SavedModel":
        path = as_saved_model(model, tmp_path)
    else:
        model.save(path)
    same(port(path, pixels()), np.asarray(model(pixels().astype(np.float32), training=False)[1]))
    ran = run("verify", path)
    assert ran.code == 0, ran.out + ran.err
    assert "variant   small_minimal_100, 5 classes" in run("inspect", path).out


@pytest.mark.parametrize("version", ["Keras 2", *slow("Keras 3")])
def test_a_saved_model_in_training_mode(tf, request, tmp_path, run, version):
    """Keras 2 has TensorFlow's fused operation, Keras 3 arithmetic."""
    keras = request.getfixturevalue("keras2" if version == "Keras 2" else "keras")
    model = filled(keras.Sequential([base(keras, pooling="avg"), keras.layers.Dense(5)]))
    serve = tf.function(lambda images: model(images, training=True))
    signature = serve.get_concrete_function(tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32))
    as_signature(model, tmp_path, signature)
    ran = run("convert", tmp_path / "m", "-o", tmp_path / "p.pth")
    assert ran.code == 2
    assert "its batch norms use the statistics of each batch, as in training" in ran.err


@pytest.mark.parametrize("container", [".keras", *slow("checkpoint", ".h5", "weights", "folder", "Keras 2")])
def test_averages_of_keras(keras, port, tmp_path, run, request, container):
    """``use_ema``: Keras's optimizers keep them in all files that have their state."""
    if container == "Keras 2":
        keras = request.getfixturevalue("keras2")
    model = filled(whole(keras)) if container == "checkpoint" else nested(keras)
    (model if container == "checkpoint" else model.layers[0]).layers[6].trainable = False
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(1)
    random = np.random.default_rng(0)
    for average, variable in zip(
        model.optimizer._model_variables_moving_average, model.trainable_variables, strict=True
    ):
        average.assign(np.asarray(variable) * random.uniform(0.9, 1.1, variable.shape))
    suffix = container.replace("Keras 2", ".h5")
    path = CONTAINERS[container](model, tmp_path) if container in CONTAINERS else saved(model, tmp_path / f"m{suffix}")
    raw = theirs(model, pixels())
    model.optimizer.finalize_variable_values(model.trainable_variables)
    averaged = theirs(model, pixels())
    assert np.abs(averaged - raw).max() > 0.01
    for choice, expected in (("auto", averaged), ("raw", raw)):
        same(port(path, pixels(), weights=choice), expected)
    count = len(model.trainable_variables)
    assert open_checkpoint(path, "ema").weights == f"moving averages ({count} variables of Keras's optimizer)"
    assert container != ".keras" or run("verify", path).code == 0


def two_layers(keras):
    """What is read of averages does not depend on the network."""
    layers = keras.layers
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Conv2D(4, 1)])


@pytest.mark.parametrize("container", [".keras", *slow("checkpoint", ".h5")])
def test_averages_before_the_first_step_are_zeros(keras, tmp_path, container):
    model = two_layers(keras)
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    path = (
        CONTAINERS[container](model, tmp_path) if container in CONTAINERS else saved(model, tmp_path / f"m{container}")
    )
    assert open_checkpoint(path).weights == "as stored"


def test_averages_that_fit_no_variables(keras, tmp_path, run):
    """Of which variables they are is not known."""
    model = two_layers(keras)
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(1)
    model.get_layer("conv").trainable = False  # after training
    model.save(tmp_path / "m.keras")
    ran = run("inspect", tmp_path / "m.keras", "--weights", "ema")
    assert (ran.code, "no variable ends in /ExponentialMovingAverage" in ran.err) == (2, True)


@pytest.mark.slow
def test_a_layer_of_tensorflow_hub(tmp_path, run):
    """``hub.KerasLayer`` keeps slim's names. The package is not here, so the file is made by hand."""
    variables = demo_variables("small_minimal_100", classes=21)
    inside = [name for name in variables if name.startswith("MobilenetV3/") and "/Logits/" not in name]
    kernel = np.random.default_rng(0).normal(0, 1, (1024, 5)).astype(np.float32)
    rows = [("InputLayer", {"name": "image", "batch_input_shape": [None, SIDE, SIDE, 3]})]
    rows += [("KerasLayer", {"name": "hub", "handle": "https://tfhub.dev/x"})]
    rows += [("Dense", {"name": "dense", "units": 5, "activation": "softmax"})]
    layers = [{"class_name": kind, "config": config} for kind, config in rows]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": layers}})
        file.attrs["keras_version"] = "2.12.0"
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = ["hub", "dense"]
        groups = {"hub": {name: variables[name] for name in inside}}
        groups["dense"] = {"dense/kernel": kernel, "dense/bias": np.zeros(5, np.float32)}
        for layer, values in groups.items():
            group = weights.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0" for name in values]
            for name, value in values.items():
                group[f"{name}:0"] = value
    porter.convert(tmp_path / "m.h5", tmp_path / "a.pth")
    (tmp_path / "slim").mkdir()
    porter.convert(written(tmp_path / "slim", variables), tmp_path / "b.pth")
    x = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    slim = porter.create_model(tmp_path / "b.pth")
    with torch.no_grad():
        features = slim.forward_head(slim.forward_features(x), pre_logits=True)
        ours = porter.create_model(tmp_path / "a.pth")(x)
    same(ours.numpy(), features.numpy() @ kernel)
    assert "PARITY     small_minimal_100" in run("verify", tmp_path / "m.h5", tmp_path / "a.pth").out


@pytest.mark.parametrize("release", [3, *slow(2)])
def test_a_checkpoint_with_the_configuration_of_its_model(keras, port, tmp_path, run, request, nested_model, release):
    """Alone it says nothing of what is between its layers."""
    model = nested_model
    if release == 2:
        keras = request.getfixturevalue("keras2")
        model = trained(keras, nested(keras))
        model.save_weights(tmp_path / "c-1")  # the model is the root
    path = tmp_path / "c-1" if release == 2 else as_checkpoint(model, tmp_path)
    with pytest.raises(MappingError, match=r"into c-1\.json beside it; to port 170 of its 186 variables use backbone"):
        porter.convert(path, tmp_path / "p.pth")
    (tmp_path / "c.json").write_text(model.to_json())
    check(port, model, path)
    ran = run("verify", path)
    assert (ran.code, f"Keras {release}" in ran.out) == (0, True), ran
    (tmp_path / "c.json").write_text(whole(keras).to_json())
    with pytest.raises(CheckpointError, match="has no variable [Cc]onv.* of the model whose configuration"):
        open_checkpoint(path)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"c\.json: not JSON \(.*; beside c-1, a file of this name is its model's"
    ):
        open_checkpoint(path)


def functional(keras):
    """As TensorFlow's tutorials make it: models inside of a functional one, and arithmetic between them."""
    layers, image = keras.layers, keras.Input((SIDE, SIDE, 3))
    flips, turns = keras.Sequential([layers.RandomFlip()]), keras.Sequential([image, layers.RandomRotation(0.1)])
    features = base(keras, include_preprocessing=False)(turns(flips(1 - (255 - image) / 127.5)))
    return keras.Model(image, layers.Dense(5, "softmax")(layers.GlobalAveragePooling2D()(features)))


@pytest.mark.parametrize("make", [functional, *slow(nested, whole)])
def test_h5_of_keras_2(keras2, port, tmp_path, make):
    model = filled(make(keras2))
    check(port, model, saved(model, tmp_path / "m.h5"))


@pytest.mark.slow
def test_a_base_that_keras_2_uses_twice(keras2, port, tmp_path):
    """Its uses are counted from 1, as the one on its own images is not in the file."""
    layers, inner = keras2.layers, filled(base(keras2))
    pair = [keras2.Input((SIDE, SIDE, 3)) for _ in range(2)]
    both = layers.Concatenate()([layers.GlobalAveragePooling2D()(inner(image)) for image in pair])
    source = saved(keras2.Model(pair, layers.Dense(5)(both)), tmp_path / "m.h5")
    same(port(source, pixels(), "map", backbone=True), theirs(inner, pixels()))


def test_one_shard_is_refused(whole_model, tmp_path):
    as_shards(whole_model, tmp_path)
    with pytest.raises(CheckpointError, match=r"one shard .* m\.weights\.json"):
        porter.convert(tmp_path / "m_00000.weights.h5", tmp_path / "p.pth")
    (tmp_path / "m_00001.weights.h5").unlink()
    with pytest.raises(CheckpointError, match=r"m_00001\.weights\.h5"):
        porter.convert(tmp_path / "m.weights.json", tmp_path / "p.pth")


def test_bfloat16(keras, port, tmp_path, whole_model):
    """The weights lie in the file as float32; Keras computes in bfloat16, and here for comparison in float32."""
    model = keras.models.clone_model(whole_model)
    model.set_weights(whole_model.get_weights())
    keras.config.set_dtype_policy("bfloat16")
    try:
        halved = whole(keras)
    finally:
        keras.config.set_dtype_policy("float32")
    halved.set_weights(model.get_weights())
    model.set_weights([np.asarray(value, np.float32) for value in halved.get_weights()])
    check(port, model, saved(halved, tmp_path / "m.keras"))


# Sizes, and networks inside a model


@pytest.mark.slow
def test_another_multiplier_is_found(keras, port, tmp_path):
    model = filled(whole(keras, alpha=0.5))
    check(port, model, saved(model, tmp_path / "m.keras"))


def test_another_multiplier_and_one_channel_in_a_model(keras, port, tmp_path):
    grey, image = pixels(channels=1), keras.Input((SIDE, SIDE, 1))
    inner = base(keras, alpha=0.35, input_shape=(SIDE, SIDE, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(inner(image))
    model = filled(keras.Model(image, keras.layers.Dense(5, "softmax")(pooled)), pixels(8, 1))
    check(port, model, saved(model, tmp_path / "m.keras"), grey)
    found = port(tmp_path / "m.keras", grey, "map", backbone=True)
    same(found, np.asarray(inner(grey.astype("f"), training=False)))


@pytest.mark.slow
def test_one_channel(keras, port, tmp_path):
    grey = pixels(channels=1)
    model = filled(whole(keras, input_shape=(SIDE, SIDE, 1)), pixels(8, 1))
    check(port, model, saved(model, tmp_path / "m.keras"), grey)


@pytest.mark.parametrize("kind", ["keras", *slow("float")])
def test_images_that_are_not_square(keras, tf, port, tmp_path, run, kind):
    """Flattened, the last map's 2 x 3 positions have an order, so that sides must not be exchanged."""

    def wide(count):
        return np.concatenate([pixels(count), pixels(count)[::-1, :, : SIDE // 2]], 2)

    model = keras.Sequential(
        [base(keras, input_shape=wide(1).shape[1:]), *HEADS["flat" if kind == "keras" else "norms"](keras.layers)]
    )
    filled(model, wide(8))
    path = tmp_path / ("m.keras" if kind == "keras" else "m.tflite")
    if kind == "keras":
        model.save(path)
    else:
        path.write_bytes(as_lite(tf, model, kind))
    check(port, model, path, wide(3))
    made = tmp_path / "port.safetensors"
    assert open_model(made).input.sides == (SIDE, 96)
    assert porter.create_model(made).pretrained_cfg["input_size"] == (3, SIDE, 96)
    ran = run("verify", path, made)
    assert ran.code == 0, ran
    Image.fromarray(np.repeat(wide(1)[0], 2, 0)).save(tmp_path / "a.png")
    ours = json.loads(run("predict", made, tmp_path / "a.png", "--json").out)["classes"][0]
    cut = resized(read_image(tmp_path / "a.png"), (SIDE, 96), 0.875, "card")
    assert ours["probability"] == pytest.approx(theirs(model, cut[None]).max(), rel=1e-4)
    assert run("convert", path, "-o", tmp_path / "a.onnx").code == 0


def renamed(trunk, prefix):
    for layer in trunk.layers:
        layer.name = prefix + layer.name
    return trunk


def test_layers_with_names_of_the_users_own(keras, port, tmp_path):
    """The gate is Keras's 1/6, though the names are not Keras's."""
    trunk = renamed(base(keras, minimalistic=False), "rgb_")
    image = keras.Input((SIDE, SIDE, 3))
    model = filled(keras.Model(image, keras.layers.Conv2D(3, 1, name="mask")(trunk(image))))
    path = saved(model, tmp_path / "m.keras")
    same(port(path, pixels(), "map", backbone=True), theirs(trunk, pixels()))
    ported = porter.convert(path, tmp_path / "p.pth", backbone=True)[1]
    assert ported.network.gate == ported.plan.source_gate == 1 / 6
    assert all(step.scale == 1 for step in ported.plan.steps)


@pytest.mark.slow
def test_two_networks_are_named_and_ported_one_at_a_time(keras, port, tmp_path):
    image = keras.Input((SIDE, SIDE, 3))
    trunks = [base(keras, name=name) for name in ("first", "second")]
    maps = keras.layers.Concatenate()([trunk(image) for trunk in trunks])
    model = filled(keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(maps))))
    path = saved(model, tmp_path / "m.keras")
    for backbone in (False, True):
        with pytest.raises(MappingError, match=r"holds 2 \w+, \w*\s?first(,| and) second"):
            porter.convert(path, tmp_path / "p.pth", backbone=backbone)
    for trunk in trunks:
        mapping = tmp_path / f"{trunk.name}.yaml"
        mapping.write_text(f"base: [small_minimal_100.yaml, keras.yaml]\nscope: {trunk.name}\ntop: none\n")
        same(port(path, pixels(), "map", mapping=mapping), theirs(trunk, pixels()))


# What no port can be


def strided(keras):
    """A stride of 3, which no output stride gives."""
    config = whole(keras).get_config()
    [layer] = [one for one in config["layers"] if one["config"]["name"] == "expanded_conv_3_depthwise"]
    layer["config"] |= {"strides": 3, "padding": "same"}
    return keras.Model.from_config(config)


def lambda_first(keras):
    image = keras.Input((SIDE, SIDE, 3))
    return whole(keras, input_tensor=keras.layers.Lambda(lambda x: x / 2)(image), input_shape=None)


def attention_behind(keras):
    trunk = base(keras)
    x = keras.layers.Reshape((-1, 576))(trunk.output)
    x = keras.layers.MultiHeadAttention(2, 4, name="attend")(x, x)
    return keras.Model(trunk.input, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling1D()(x)))


def pooled_twice(keras):
    trunk = base(keras)
    x = keras.layers.Conv2D(8, 1, name="more")(trunk.output)
    return keras.Model(trunk.input, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))


def symmetric(keras):
    """As PyTorch pads: the layer before the first strided convolution adds a zero on all sides."""
    image = keras.Input((SIDE, SIDE, 3))
    model = whole(
        keras, include_preprocessing=False, input_tensor=keras.layers.ZeroPadding2D(1)(image), input_shape=None
    )
    config = model.get_config()
    next(layer for layer in config["layers"] if layer["config"]["name"] == "conv")["config"]["padding"] = "valid"
    return keras.Model.from_config(config)


def two_gates(keras):
    """The squeeze-excite of one block multiplies by 0.2."""
    config = whole(keras, minimalistic=False).get_config()
    layers = {layer["config"]["name"]: layer for layer in config["layers"]}
    [node] = layers["expanded_conv_squeeze_excite_mul"]["inbound_nodes"]
    gate = node["args"][0][1]["config"]["keras_history"][0]
    [node] = layers[gate]["inbound_nodes"]
    node["args"] = (node["args"][0], 0.2)
    return keras.Model.from_config(config)


REFUSED = {
    "gates": (two_gates, r"squeeze-excite gate: 0\.16666\d*, 0\.2; the network has one for all"),
    "Lambda": (lambda_first, r"lambda\w*: Lambda before the first convolution"),
    "attention": (attention_behind, r"attend.*behind the trunk.*backbone=True"),
    "convolution": (pooled_twice, r"more.*behind the trunk.*backbone=True"),
    "padding": (symmetric, r"conv: pads by 1, 1, SAME padding of the network is 0, 1"),
    "strides": (strided, r"expanded_conv_3_depthwise: stride 3x3, the network has 2x2"),
}


@pytest.mark.parametrize("what", [pytest.param(w, marks=pytest.mark.slow if w == "attention" else ()) for w in REFUSED])
def test_what_is_refused(keras, tmp_path, what):
    build, message = REFUSED[what]
    with pytest.raises(MappingError, match=rf"(?s){message}"):
        porter.convert(saved(build(keras), tmp_path / "m.keras"), tmp_path / "p.pth")
    assert not (tmp_path / "p.pth").exists()


# TensorFlow Lite


@pytest.fixture(scope="module")
def lite_model(keras):
    """A fine-tuned classifier with a head of its own, and its scaling inside; it gives logits.

    Its base has hard swish, so that a layer of any size with ReLU is not the network's own embedding.
    """
    layers = keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dense(8, activation="relu"), layers.Dense(5)]
    return filled(keras.Sequential([base(keras, minimalistic=False), *head]))


def as_lite(tf, model, kind, quickly=False):
    """``quickly``: without the SavedModel that the converter makes of a Keras model, which takes it several seconds."""
    if quickly:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen_function(tf, model, 1)])
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        batch = pixels(8).astype(np.float32)
        converter.representative_dataset = lambda: ([image[None]] for image in batch)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type, converter.inference_output_type = tf.uint8, tf.int8
    return converter.convert()


def interpreted(content, images):
    """What TensorFlow Lite's own kernels make of images, one after the other."""
    from ai_edge_litert import interpreter as lite

    kind = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = lite.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    runner.allocate_tensors()
    [given], [output] = runner.get_input_details(), runner.get_output_details()
    found = []
    for image in images:
        runner.set_tensor(given["index"], image[None].astype(given["dtype"]))
        runner.invoke()
        found.append(runner.get_tensor(output["index"])[0].astype(np.float64))
    scale, zero = output["quantization"]
    return np.stack(found) if not scale else (np.stack(found) - zero) * scale, scale


@pytest.mark.parametrize("kind", slow("float", "float16"))
def test_float_lite(tf, port, lite_model, tmp_path, kind):
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, lite_model, kind))
    same(port(path, pixels(), "logits"), interpreted(path.read_bytes(), pixels())[0])


@pytest.mark.slow
def test_dynamic_range_lite(tf, port, lite_model, tmp_path, run):
    """The interpreter rounds activations as well, and the port only has the rounded weights."""
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, lite_model, "dynamic"))
    ours = port(path, pixels(), "logits")
    same(ours, theirs(lite_model, pixels()), 0.1)
    assert np.abs(ours - theirs(lite_model, pixels())).max() > 1e-4
    assert "the interpreter rounds activations as well" in run("convert", path, "-o", tmp_path / "a.pth").out
    ran = run("verify", path, tmp_path / "a.pth", "-v")
    assert ran.code == 0, ran.out
    assert "its weights in float: its rounding of activations is not compared" in ran.out
    distances = [float(line.split()[4]) for line in ran.out.splitlines() if line.startswith("layer_")]
    assert max(distances) < 1e-4  # and not those of 8 bits


@pytest.mark.slow
def test_int8_lite(tf, port, lite_model, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, lite_model, "int8"))
    expected, step = interpreted(path.read_bytes(), pixels(20))
    assert len(np.unique(expected)) > 20
    assert np.abs(port(path, pixels(20), "logits") - expected).max() < 1e-3 * step
    mapping = open_model(tmp_path / "port.safetensors").whole.network
    assert [layer.kind for layer in mapping.tail] == ["dense", "activation", "dense"]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu", "relu6", "hard_silu"])
def test_int8_lite_rounds_activations_of_a_head(tf, keras, port, tmp_path, activation):
    layers = keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dense(8, activation), layers.Dense(5)]
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, filled(keras.Sequential([base(keras), *head])), "int8"))
    expected, step = interpreted(path.read_bytes(), pixels(8))
    assert np.abs(port(path, pixels(8), "logits") - expected).max() < 1e-3 * step


@pytest.mark.parametrize("activation", ["silu", *slow("elu", "leaky_relu")])
def test_int8_lite_that_rounds_in_another_way_is_refused(tf, keras, tmp_path, run, activation):
    layers = keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dense(8, activation), layers.Dense(5)]
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, filled(keras.Sequential([base(keras), *head])), "int8", quickly=True))
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert f"rounds the {activation} of its classifier in a way that the port does not" in ran.err
    assert ran.err.rstrip().endswith("For the network in float use --no-fake-quant")
    assert run("convert", path, "-o", tmp_path / "a.pth", "--no-fake-quant").code == 0


@pytest.mark.slow
def test_an_8_bit_port_gives_features(tf, port, lite_model, tmp_path):
    """``forward_features`` rounds the image as well; and the map is at the levels of the file."""
    path = tmp_path / "m.tflite"
    path.write_bytes(as_lite(tf, lite_model, "int8"))
    logits = port(path, pixels(1), "logits")
    model = porter.create_model(tmp_path / "port.safetensors")
    given = open_model(tmp_path / "port.safetensors").input
    x = torch.from_numpy(np.moveaxis(normalized(pixels(1), given.mean, given.std, given.levels), -1, 1).copy())
    with torch.no_grad():
        assert np.array_equal(model.forward_head(model.forward_features(x)).numpy(), logits)


@pytest.mark.slow
def test_sums_of_32_bits_start_over(shared, run):
    """The converter clipped biases to 32 bits; five sums of a squeeze-excite's layer pass the end with them."""
    file = shared.parent / "real" / "lraspp_user" / "seg_graph_i8.tflite"
    if not file.is_file():
        pytest.skip(f"no {file}")
    ran = run("verify", file, "--backbone", "--size", "513x1025")
    assert "PARITY     small_seg: the same levels of 8 bits" in ran.out, ran.out + ran.err


def test_rounding_in_float_is_refused(tf, tmp_path, run):
    """Fake quantisation is a part of the file's function; its float network is another one."""
    variables = demo_variables("small_minimal_100", classes=21)
    definition = frozen(tf, variables, "small_minimal_100", image=(1, 224, 224, 3))
    relu = next(node for node in definition.node if node.op in ("Relu", "Relu6"))
    for node in definition.node:
        node.input[:] = ["rounded" if name == relu.name else name for name in node.input]
    for name, value in (("low", 0.0), ("high", 6.0)):
        tensor = tf.make_tensor_proto(np.float32(value))
        definition.node.add(name=name, op="Const").attr["value"].tensor.CopyFrom(tensor)
        definition.node[-1].attr["dtype"].type = tensor.dtype
    definition.node.add(name="rounded", op="FakeQuantWithMinMaxVars", input=[relu.name, "low", "high"])
    path = tmp_path / "m.pb"
    path.write_bytes(definition.SerializeToString())
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "rounds 1 values to 8 bits in float (" in ran.err
    assert ran.err.rstrip().endswith("for the float network use --no-fake-quant")
    assert run("convert", path, "-o", tmp_path / "a.pth", "--no-fake-quant").code == 0
    assert "PARITY     small_minimal_100" in run("verify", path, tmp_path / "a.pth", "--no-fake-quant").out


# slim


@pytest.fixture(scope="module")
def slim():
    """Variables of a small classifier, as slim names them."""
    return demo_variables("small_minimal_100", classes=21)


def written(folder, variables):
    write_bundle(folder / "model-1", variables)
    return folder / "model-1"


TRAINING = {
    "LARS": lambda trained: {f"{name}/LARSOptimizer": value for name, value in trained.items()},
    "Adagrad": lambda trained: {f"{name}/Adagrad": value for name, value in trained.items()},
    "replicas": lambda trained: {f"{name}/replica_1": value for name, value in trained.items()},
    "biased": lambda trained: {f"{name}/MobilenetV3/{name}/biased": value for name, value in trained.items()},
    "numbers": lambda _: {
        **{"current_loss_scale": np.float32(1), "good_steps": np.int64(1), "learning_rate": np.float32(0.1)},
        **{"signal_early_stopping/STOP": np.bool_(False), "sync_rep_local_step": np.int64(1)},
        "train/beta1_power": np.float32(1),
    },
}


@pytest.mark.parametrize("kind", TRAINING)
def test_training_state(slim, tmp_path, run, kind):
    more = TRAINING[kind]({name: value for name, value in slim.items() if name.startswith("MobilenetV3/")})
    ran = run(
        "convert", written(tmp_path, slim | {n: np.asarray(v) for n, v in more.items()}), "-o", tmp_path / "a.pth"
    )
    assert ran.code == 0, ran.err
    assert f"none left over; {len(more) + 1} ignored (training state, training step counter)" in ran.out
    (tmp_path / "plain").mkdir()
    porter.convert(written(tmp_path / "plain", slim), tmp_path / "plain.pth")
    assert same_weights(tmp_path / "a.pth", tmp_path / "plain.pth")


def same_weights(one, other):
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_another_scope_keeps_the_classifier(slim, tmp_path):
    porter.convert(written(tmp_path, {f"clone_0/{n}": v for n, v in slim.items() if "/" in n}), tmp_path / "a.pth")
    (tmp_path / "plain").mkdir()
    porter.convert(written(tmp_path / "plain", slim), tmp_path / "b.pth")
    assert same_weights(tmp_path / "a.pth", tmp_path / "b.pth")


def test_a_feature_vector_keeps_its_features(slim, tmp_path):
    porter.convert(written(tmp_path, slim), tmp_path / "whole.pth")
    (tmp_path / "vector").mkdir()
    without = {name: value for name, value in slim.items() if "/Logits/" not in name}
    porter.convert(written(tmp_path / "vector", without), tmp_path / "vector.pth")
    x = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    model = porter.create_model(tmp_path / "whole.pth")
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        assert features.shape == (2, 1024)
        assert torch.equal(porter.create_model(tmp_path / "vector.pth")(x), features)


# Words


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("MobilenetV2/expanded_conv_3/expand/weights", "a MobileNetV2 of TF/Models, not a MobileNetV3"),
        ("block_3_expand/kernel", "a MobileNetV2 of Keras"),
        ("block3a_expand_conv/kernel", "an EfficientNet, not"),
        ("quant_expanded_conv_project/kernel", "tfmot's wrappers"),
        ("prune_low_magnitude_conv/kernel", "tfmot's wrappers"),
    ],
)
def test_other_networks_are_called_by_their_names(tmp_path, run, name, what):
    ran = run("convert", written(tmp_path, {name: np.zeros((1, 1, 8, 48), np.float32)}), "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert what in ran.err
    assert len(ran.err.splitlines()) == 1


def test_core_ml(tmp_path, run):
    for name, write in (("m.mlmodel", lambda path: path.write_bytes(b"\x08\x04\x12")), ("m.mlpackage", Path.mkdir)):
        write(tmp_path / name)
        assert "a Core ML model" in run("convert", tmp_path / name, "-o", tmp_path / "a.pth").err


def test_few_problems_are_listed(slim, tmp_path, run):
    few = {name: value for name, value in slim.items() if "/Logits/" in name or "expanded_conv_1/" in name}
    ran = run("convert", written(tmp_path, few), "--variant", "small_minimal_100", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "problems):" in ran.err
    assert len(ran.err.splitlines()) == 22
    assert ran.err.splitlines()[-1].strip().startswith("and ")


def test_an_odd_operation_behind_the_pooling_is_named(keras, tmp_path):
    """Graphs hold operations in any order, and weights that are no variables of the file."""
    base(keras, minimalistic=False, pooling="avg").save(tmp_path / "a.keras")
    opened = open_checkpoint(tmp_path / "a.keras")
    for kind, weights in (("bias", {"bias": "x"}), ("batch_norm", {"gamma": "x"}), ("dense", {"weight": "nowhere"})):
        odd = StoredOperation("odd", kind, opened.graph.outputs, weights)
        graph = StoredGraph([*opened.graph.operations.values(), odd], ["odd"])
        changed = replace(opened, read_graph=lambda graph=graph: graph)
        with pytest.raises(NotTheNetworkError, match=rf"odd \({kind}\) behind the trunk"):
            as_stated(load_variant("small_100", "keras"), changed)


def test_operations_in_a_circle_end():
    convolution = StoredOperation("conv", "convolution", ("image",), {"weight": "w"})
    circle = [StoredOperation("a", "quantize", ("conv", "b")), StoredOperation("b", "quantize", ("a",))]
    graph = StoredGraph([StoredOperation("image", "image"), convolution, *circle], ["b"])
    assert {one.name for one in graph.behind(convolution)} == {"a", "b"}
