"""``.tflite`` files: made by TensorFlow's converter at test time, and the two trained ones of the original authors."""

import numpy as np
import pytest
import torch
from conftest import SHARED, endpoints
from lite import eight_bits

import porter
from porter.errors import ArtifactError, CheckpointError, ParityError
from porter.mapping.options import PortOptions
from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.parity.references.interpreter import _check_values, interpreter
from porter.parity.references.tf_nn import graph
from porter.parity.samples import photos
from porter.port import plan_port
from porter.sources import open_checkpoint
from porter.sources.tflite_graph import read_graph

pytestmark = pytest.mark.tensorflow
REAL = SHARED.parent / "real"
EMBEDDER = REAL / "mobilenet_v3_small_075_224_embedder.tflite"
EIGHT_BIT = REAL / "v3-small_224_1.0_uint8.tflite"
SIDE = 128  # of the images that files made here take


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip(f"no real files at {REAL} (set MNV3_CHECKPOINTS)")
    return REAL


def convert(tf, folder, variant="small_075", quantize=None, classes=21, part="Logits"):
    """The demo weights of ``variant`` in our tf.nn graph, through TensorFlow's converter."""
    from porter.sources.bundle_writer import write_bundle

    folder.mkdir(exist_ok=True)
    write_bundle(folder / "model-1", demo_variables(variant, classes=classes), force=True)
    forward = graph(plan_port(folder / "model-1"), "float32")

    @tf.function(input_signature=[tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32)])
    def network(images):
        return dict(forward(images))[part]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    path = folder / f"{variant}.tflite"
    path.write_bytes(converter.convert())
    return path


@pytest.fixture(scope="module")
def made(tf, tmp_path_factory):
    return convert(tf, tmp_path_factory.mktemp("tflite") / "float")


@pytest.mark.parametrize(
    "variant",
    [
        "small_075",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("small_minimal_100", "edgetpu_075", "large_100")),
    ],
)
def test_inspect_convert_verify(tf, tmp_path, run, variant):
    path = convert(tf, tmp_path / "m", variant)
    assert f"variant   {variant}, 21 classes" in run("inspect", path).out
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "batch norms folded" in ran.out
    verdict = porter.verify(path, tmp_path / "a.pth")
    assert verdict.reference.startswith("interpreter")
    assert verdict.passed
    assert len(verdict.worst_rows()) >= 45


@pytest.mark.slow
def test_keras_model(tf, tmp_path):
    """Keras's gate is 1/6, and the file says so."""
    from keras_models import build

    model = build(tf.keras, "small_075")
    path = tmp_path / "keras.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    port = plan_port(path)
    assert port.network.gate == 1 / 6
    assert (port.plan.variant, port.classes) == ("small_075", 11)
    images = np.random.default_rng(1).uniform(0, 255, (1, 224, 224, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    with torch.no_grad():
        inputs = torch.from_numpy(images / 127.5 - 1).permute(0, 3, 1, 2)
        found = porter.create_model("small_075", path)(inputs).softmax(1).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_float16(tf, tmp_path, made, run):
    half = convert(tf, tmp_path / "half", quantize="float16")
    assert half.stat().st_size < 0.6 * made.stat().st_size
    assert porter.verify(half).passed
    full, halved = open_checkpoint(made), open_checkpoint(half)
    assert set(full) == set(halved)
    for name, variable in halved.items():
        expected = full[name].read().astype(np.float16).astype(np.float32)
        assert np.array_equal(variable.read(), expected), name


def test_gate_is_read_from_the_graph(made):
    port = plan_port(made)
    assert port.network.gate == 0.16667
    assert sum(step.scale != 1 for step in port.plan.steps) == 9


def test_same_weights_as_folding_the_checkpoint_itself(tf, tmp_path, made):
    """Two roads to the folded form: TensorFlow's converter, and our --fold-bn. Squeeze-excite has nothing to fold."""
    folded = porter.create_model("small_075", made.parent / "model-1", layout="slim").state_dict()
    ours = plan_port(made.parent / "model-1", PortOptions(layout="slim", fold_bn=True))
    from porter.mapping.apply import carry_out

    ours = carry_out(ours.plan, ours.checkpoint).arrays
    theirs = porter.create_model("small_075", made, layout="slim").state_dict()
    assert list(theirs) == list(ours)
    assert len(theirs) < len(folded)
    for name, value in ours.items():
        scale = np.abs(value).max()
        assert np.abs(theirs[name].numpy() - value).max() <= 2e-6 * scale, name


def test_feature_vector(tf, tmp_path, run):
    path = convert(tf, tmp_path / "m", part="global_pool")
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "classes   0" in ran.out
    assert porter.verify(path, tmp_path / "a.pth").passed


def test_export_is_refused(made, tmp_path, run):
    run("convert", made, "-o", tmp_path / "a.pth")
    ran = run("export-tf", tmp_path / "a.pth", tmp_path / "out")
    assert ran.code == 2
    assert "a.pth: its batch norms are folded away" in ran.err
    with pytest.raises(ArtifactError, match="holds no ranges"):
        porter.create_model("small_075", tmp_path / "a.pth", fake_quant=True)


@pytest.mark.parametrize("damage", ["cut", "vector", "shape", "none"])
def test_damaged(made, tmp_path, damage):
    data = bytearray(made.read_bytes())
    path = tmp_path / "x.tflite"
    if damage == "cut":
        data = data[:2000]
    elif damage == "none":
        data = bytearray(b"\x18\0\0\0TFL3") + bytes(100)
    else:
        start = int.from_bytes(data[:4], "little")
        data[start : start + 64] = b"\xff" * 64 if damage == "vector" else b"\x01" * 64
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.tflite"):
        [variable.read() for variable in open_checkpoint(path).values()]


def test_finding_weights_without_a_shape(made, tmp_path, monkeypatch):
    """IndexError came out of the reader where damage had taken the shape of a constant."""
    from porter.sources import tflite

    graph = tflite.read_graph(made)
    position = next(o.inputs[1] for o in graph.operators if o.kind == "conv_2d")
    graph.tensors[position] = graph.tensors[position]._replace(shape=())
    monkeypatch.setattr(tflite, "read_graph", lambda path: graph)
    with pytest.raises(CheckpointError, match=r"operator 0 \(conv_2d\): weights of shape \[\]; damaged"):
        open_checkpoint(made)


def batch_of_photos(real, port, limit):
    return np.concatenate([s.images for s in photos(real / "images", (224, 224), port.mapping.input, limit)])


@pytest.mark.parametrize("count", [10, pytest.param(125, marks=pytest.mark.slow)])
def test_real_embedder_on_real_photos(real, count):
    """float32 rounding at its output, on photos: all 125 in the slow suite."""
    port = plan_port(EMBEDDER)
    reference = interpreter(port)
    images = reference.prepare(batch_of_photos(real, port, count))
    [(_, (pooled, _))] = reference.run(images, ["global_pool"])
    expected = pooled.reshape(len(images), -1)
    model = porter.create_model("small_075", EMBEDDER)
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert found.shape == (count, 1024)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_real_embedder_verifies(real, run):
    ran = run("verify", EMBEDDER)
    assert ran.code == 0, ran.out
    assert "PARITY" in ran.out
    assert run("verify", EMBEDDER, "--dtype", "float64").code == 2


@pytest.mark.parametrize("count", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_real_eight_bit_level_for_level(real, count):
    """With fake quantisation on, every layer is the interpreter's, on photos: the levels themselves."""
    port = plan_port(EIGHT_BIT)
    reference = interpreter(port)
    images = batch_of_photos(real, port, count)
    model = porter.create_model("small_100", EIGHT_BIT, fake_quant=True, keep_background=True)
    found = endpoints(model, torch.from_numpy(reference.prepare(images)).permute(0, 3, 1, 2))
    expected = dict(reference.run(images, list(found)))
    assert len(expected) >= 49
    for name, (theirs, _) in expected.items():
        ours = found[name].permute(0, 2, 3, 1) if found[name].ndim == 4 else found[name]
        assert np.abs(ours.numpy().reshape(theirs.shape) - theirs).max() <= 1e-6 * np.abs(theirs).max(), name
    assert (found["Logits"].argmax(1).numpy() == expected["Logits"].values.argmax(1)).all()


@pytest.mark.slow
def test_real_eight_bit_dequantised(real, tmp_path, run):
    ran = run("convert", EIGHT_BIT, "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    assert "variant   small_100 (found from the shapes)" in ran.out
    assert "classes   1000 (background dropped)" in ran.out
    verdict = porter.verify(EIGHT_BIT, tmp_path / "a.safetensors", images=real / "images")
    assert verdict.passed
    assert verdict.top1_agree == verdict.images == 32


def test_demo_folder_is_no_tflite(tmp_path, run):
    folder = write_demo_checkpoint(tmp_path)
    ran = run("verify", folder, "--reference", "tflite")
    assert ran.code == 2
    assert "no tflite file; use another reference" in ran.err


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(True, id="8 bits in and out"),
        pytest.param(False, id="float in and out", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "variant",
    [
        "small_075",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("edgetpu_075", "small_minimal_100", "large_100")),
    ],
)
def test_int8_level_for_level(tf, tmp_path, run, variant, whole):
    """Every layer as the interpreter's integer kernels compute it, background and all, or dropped."""
    from porter.sources.bundle_writer import write_bundle

    write_bundle(tmp_path / "model-1", demo_variables(variant))
    forward = graph(plan_port(tmp_path / "model-1"), "float32")

    @tf.function(input_signature=[tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32)])
    def network(images):
        return dict(forward(images))["Predictions"]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    path = tmp_path / "int8.tflite"
    path.write_bytes(eight_bits(tf, converter, -1, whole, side=SIDE))
    for options in ([], ["--keep-background"]):
        ran = run("verify", path, *options)
        assert ran.code == 0, ran.out
        assert f"PARITY     {variant}: the same levels of 8 bits" in ran.out
    if variant == "small_075":
        assert run("convert", path, "-o", tmp_path / "a.pth").code == 0
        assert run("verify", path, tmp_path / "a.pth").code == 0


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), pytest.param(1 / 127.5, -1.0, marks=pytest.mark.slow)])
def test_pixels_become_levels_inside(tf, three_blocks, tmp_path, run, scale, offset):
    """As in every 8-bit file that is made of a Keras model with its preprocessing. Both sides were given 0 and 1 alone."""
    from porter.parity.samples import noise, structured
    from porter.parity.verify import open_check

    options = PortOptions(mapping=three_blocks.mapping)
    forward = graph(plan_port(three_blocks.source, options), "float32")

    @tf.function(input_signature=[tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32)])
    def network(pixels):
        return dict(forward(pixels * scale + offset))["Predictions"]

    path = tmp_path / "int8.tflite"
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    path.write_bytes(eight_bits(tf, converter, 0, whole=True, taken="uint8", side=SIDE))
    assert read_graph(path).operators[0].kind == "quantize"
    ran = run("verify", path, *three_blocks.own)
    assert ran.code == 0, ran.out + ran.err
    check = open_check(path, None, options)
    reference, spec = check.reference, check.mapping.input
    # The converter moves a factor without an offset into the first convolution's weights
    assert (spec.mean[0], spec.std[0]) == pytest.approx((0.5, 0.5) if offset else (0, 1 / 255), abs=0.01)
    for images in (noise((SIDE, SIDE), 0).images, structured((SIDE, SIDE)).images):
        given = reference.prepare(images)
        assert np.abs(given * spec.std + spec.mean - (images + 1) / 2).max() < 2 / 255
        assert len(np.unique(given)) > 100


def test_other_images_are_not_compared(tmp_path):
    images = np.linspace(-1, 1, 960, dtype=np.float32).reshape(1, 20, 16, 3)
    _check_values(images + 1e-3, images, 2e-3, tmp_path)
    _check_values(images * 0 + 0.5, images * 0 + 0.5, 0, tmp_path)  # one value as asked for
    for prepared, step in ((images * 0, 0.1), (np.sign(images), 2), (images + 1e-3, 1e-4), (images * np.nan, 1)):
        with pytest.raises(ParityError, match="a comparison would be of other images"):
            _check_values(prepared, images, step, tmp_path)


@pytest.mark.slow
def test_int8_of_keras(tf, tmp_path, run):
    """Its preprocessing is of 8 bits too, and its gate of 1/6 rounds between its operations."""
    from keras_models import build

    path = tmp_path / "keras.tflite"
    converter = tf.lite.TFLiteConverter.from_keras_model(build(tf.keras, "small_075"))
    path.write_bytes(eight_bits(tf, converter, 0, whole=False))
    ran = run("verify", path)
    assert ran.code == 0, ran.out


@pytest.mark.slow
@pytest.mark.parametrize("name", [EIGHT_BIT.name, "mobilenet_edgetpu_224_1.0_uint8.tflite"])
def test_the_authors_eight_bits(real, run, name):
    ran = run("verify", real / name)
    assert ran.code == 0, ran.out
    assert "the same levels of 8 bits" in ran.out
    ran = run("verify", real / name, "--images", real / "images")
    assert ran.code == 0, ran.out
    assert "top-1 32/32, top-5 32/32" in ran.out


def side_branch(between):
    """Three convolutions 1x1 in a row, of 1, 2 and 3; one of 9 leaves the first, and is added behind the third.

    ``between``: the file has it between the first and the second.
    """
    from porter.sources.tflite_writer import NewOperator, NewTensor, tflite_bytes

    image, values = (1, 4, 4, 1), (1, 2, 3, 9)
    kernels = [NewTensor(f"w{v}", (1, 1, 1, 1), "float32", np.full((1, 1, 1, 1), v, "f")) for v in values]
    tensors = [*kernels, *(NewTensor(f"t{n}", image, "float32") for n in range(6))]
    options = {"padding": 0, "stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1}
    trunk = [NewOperator("conv_2d", [4 + n, n], [5 + n], options) for n in range(3)]
    side = NewOperator("conv_2d", [5, 3], [8], options)
    last = NewOperator("add", [8, 7], [9], {})
    steps = [trunk[0], side, *trunk[1:], last] if between else [*trunk, side, last]
    return tflite_bytes(tensors, steps, 4, [9])


def test_numbers_follow_the_graph(tmp_path):
    """A decoder's convolution between two of the trunk's shifted all numbers behind it."""
    for between in (False, True):
        path = tmp_path / "m.tflite"
        path.write_bytes(side_branch(between))
        opened = open_checkpoint(path)
        assert [float(opened[f"{n}/weights"].read().item()) for n in range(4)] == [1, 2, 3, 9]


def test_real_decoder_between_the_trunk(real):
    """A user's LR-ASPP as float .tflite, against the same network's frozen graph."""
    from porter.port import carry_out_port

    options = PortOptions(backbone=True, fold_bn=True)
    expected = carry_out_port(plan_port(real / "lraspp_small_user.pb", options)).arrays
    found = carry_out_port(plan_port(real / "lraspp_user" / "seg_graph_f.tflite", PortOptions(backbone=True))).arrays
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 3e-7 * np.abs(value).max(), name
