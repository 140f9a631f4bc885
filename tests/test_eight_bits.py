"""8-bit ports: verify, release, predict, evaluate, the card and create_model are about one model, and say which."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from quantized_checkpoint import VARIANT

import porter
from porter.artifacts.artifact import load_artifact
from porter.errors import PorterError

REAL = Path(__file__).parents[2] / "shared" / "real"
EIGHT_BIT = REAL / "v3-small_224_1.0_uint8.tflite"


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 96, 96)).astype("f"))


def logits(model, images):
    with torch.no_grad():
        return model(images)


def test_an_artifact_with_ranges_computes_8_bits(trained, tmp_path, run, images):
    run("convert", trained, "-o", tmp_path / "a.pth")
    run("convert", trained, "-o", tmp_path / "plain.pth", "--no-fake-quant")
    eight, asked, refused, plain = (
        porter.create_model(VARIANT, tmp_path / file, fake_quant=how)
        for file, how in (("a.pth", None), ("a.pth", True), ("a.pth", False), ("plain.pth", None))
    )
    assert torch.equal(logits(eight, images), logits(asked, images))
    assert torch.equal(logits(plain, images), logits(refused, images))
    assert not torch.equal(logits(eight, images).float(), logits(plain, images))
    assert load_artifact(tmp_path / "plain.pth").metadata.ranges == {}
    with pytest.raises(PorterError, match="holds no ranges"):
        porter.create_model(VARIANT, tmp_path / "plain.pth", fake_quant=True)
    with pytest.raises(PorterError, match="in layout slim only"):
        porter.create_model(VARIANT, tmp_path / "a.pth", layout="timm")


@pytest.mark.parametrize("how", [{"num_classes": 0}, {"num_classes": 7}, {"features_only": True}])
def test_parts_of_an_8_bit_model(trained, images, how):
    """The ranges of a head that is not there do not count; num_classes=0 was an AttributeError."""
    found = logits(porter.create_model(VARIANT, trained, **how), images)
    found = found[-1] if isinstance(found, list) else found
    assert found.dtype == torch.float64
    if "num_classes" in how:
        assert found.shape == (1, how["num_classes"] or 1024)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("plain", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_release(trained, tmp_path, run, plain, tf):
    out = tmp_path / "dist"
    ran = run("release", trained, "--out", out, *(["--no-fake-quant"] if plain else []))
    assert ran.code == 0, ran.err
    assert ("the same levels of 8 bits" in ran.out) != plain
    [path] = out.glob("*.pth")
    assert path.name.startswith(f"mobilenetv3_{VARIANT}_{'dequantized' if plain else '8bit'}-")
    assert json.loads((out / "parity.json").read_text())["fake_quant"] is not plain
    card = (out / "README.md").read_text()
    assert ("computes 8 bits" in card) != plain
    assert ("dequantised form" in card) == plain
    # The float network fits timm's class, the 8-bit one does not
    assert ("local-dir" in card) == plain
    assert json.loads((out / "config.json").read_text())["architecture"].startswith("tf_") == plain
    ran = run("release", "--check", out)
    assert ran.code == 0, ran.err
    assert (
        "8 bits, and exports but tflite are of float networks"
        in run("release", trained, "--out", tmp_path / "x", "--onnx").err
    )
    verdict = porter.verify(trained, path, sizes=[(96, 96)])
    assert (verdict.passed, verdict.fake_quant, verdict.dequantized) == (True, not plain, plain)


def test_a_range_without_its_end(trained, tmp_path, run):
    from porter.sources import open_checkpoint
    from porter.sources.bundle_writer import write_bundle

    values = {name: variable.read() for name, variable in open_checkpoint(trained).items()}
    name = next(name for name in values if name.endswith("/max"))
    del values[name]
    write_bundle(tmp_path / "model-1", values)
    ran = run("convert", tmp_path / "model-1", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert f"{name}: missing, but {name.removesuffix('max')}min is there" in ran.err


REAL_FILE = pytest.mark.skipif(not EIGHT_BIT.exists(), reason=f"no real files at {REAL}")


def some_photos(opened, count):
    """(count, 3, 224, 224) photos as the network takes them."""
    from porter.parity.samples import photos
    from porter.photos.images import normalized

    samples = photos(REAL / "images", (224, 224), opened.input, limit=count)
    pixels = np.round((np.concatenate([sample.images for sample in samples]) + 1) * 127.5).astype(np.uint8)
    spec = opened.input
    return torch.from_numpy(normalized(pixels, spec.mean, spec.std, spec.levels)).permute(0, 3, 1, 2)


@REAL_FILE
def test_deployed_as_integers():
    """Level for level what PyTorch computes, with another number of outputs and at another size as well."""
    pytest.importorskip("ai_edge_litert")
    from porter.models.create import open_model

    opened = open_model(EIGHT_BIT)
    fast, images = porter.deploy(opened.whole, threads=1), some_photos(opened, 3)
    found = fast(images)
    assert torch.equal(found, logits(opened.whole, images))
    assert np.array_equal(fast(images.numpy()), found.numpy())
    assert fast(images[:0]).shape == (0, 1000)
    embedding = porter.create_model("small_100", EIGHT_BIT, num_classes=0)
    assert torch.equal(porter.deploy(embedding)(images[:1]), logits(embedding, images[:1]))
    other = porter.create_model("small_100", EIGHT_BIT)
    other.reset_classifier(5)  # the range of the old layer is not the new one's
    with pytest.raises(PorterError, match="no range of classifier"):
        porter.deploy(other)
    small = images[:1, :, ::2, ::2][..., :99]
    assert torch.equal(fast(small), logits(opened.whole, small))
    with pytest.raises(ValueError, match="deployed for 224x224 images, not 112x99"):
        porter.deploy(opened.whole, 224)(small)
    with pytest.raises(PorterError, match="MobileNetV3Features that computes 8 bits cannot be deployed"):
        porter.deploy(porter.create_model("small_100", EIGHT_BIT, features_only=True))


@REAL_FILE
@pytest.mark.parametrize(
    ("there", "evaluated"), [(True, False), (False, False), pytest.param(True, True, marks=pytest.mark.slow)]
)
def test_without_litert_pytorch_computes_the_same(run, monkeypatch, there, evaluated):
    photo = sorted((REAL / "images").iterdir())[0]
    if not there:
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    ran = run("predict", EIGHT_BIT, photo, "--json")
    assert ran.code == 0, ran.err
    assert ("note      8 bits are computed by PyTorch, which is slow: needs pip install" in ran.err) != there
    best = json.loads(ran.out)["classes"][0]
    assert (best["number"], round(best["probability"], 6)) == (3, 0.918539)
    if evaluated:
        ran = run("evaluate", EIGHT_BIT, photo.parent, "--json", "--workers", 0)
        assert json.loads(ran.out)["results"][0]["top1"]["hits"] == 102


def test_ranges_of_training_alone(trained, run, tmp_path):
    """Integer kernels would round otherwise than fake quantisation."""
    with pytest.raises(PorterError, match="state no integer arithmetic to deploy"):
        porter.deploy(porter.create_model(VARIANT, trained))
    from PIL import Image

    Image.new("RGB", (96, 96), (200, 30, 60)).save(tmp_path / "a.png")
    ran = run("predict", trained, tmp_path / "a.png")
    assert ran.code == 0, ran.err
    assert "note      8 bits are computed by PyTorch, which is slow: ranges of training" in ran.err


@pytest.mark.slow
@pytest.mark.tensorflow
@REAL_FILE
def test_the_authors_8_bit_classifier(tf, tmp_path, run):
    """Its release names the interpreter's classes: 81.6 % of 125 photos, where the dequantised one has 77.6 %."""
    found = {}
    for how, options in (("8bit", []), ("dequantized", ["--no-fake-quant"])):
        ran = run("release", EIGHT_BIT, "--out", tmp_path / how, *options)
        assert ran.code == 0, ran.err
        assert run("release", "--check", tmp_path / how).code == 0
        ran = run("evaluate", tmp_path / how, REAL / "images", "--json", "--workers", 0)
        found[how] = json.loads(ran.out)["results"][0]["top1"]["hits"]
        config = json.loads((tmp_path / how / "config.json").read_text())
        assert "pretrained_cfg" not in config  # folded batch norms: timm would not load it
        photo = next((REAL / "images").iterdir())
        [code, *_] = re.findall("```python\n(.*?)```", (tmp_path / how / "README.md").read_text(), re.S)
        code = code.replace("photo.jpg", str(photo)) + "\nprint(int(classes[0, 0]))"
        shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / how, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        [(_, predicted)] = porter.predict(tmp_path / how, [photo])
        assert int(shown.stdout) == predicted.rows[0].number
    assert found == {"8bit": 102, "dequantized": 97}
    ran = run("evaluate", f"tf:{EIGHT_BIT}", REAL / "images", "--json", "--workers", 0)
    assert json.loads(ran.out)["results"][0]["top1"]["hits"] == 102


@pytest.mark.tensorflow
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("channels", [32, 40])
def test_means_as_the_kernels_round_them(tf, tmp_path, keepdims, channels):
    """Every level of the interpreter's mean, in whole blocks of 16 channels and in those left over."""
    from ai_edge_litert import interpreter as lite

    from porter.mapping.ranges import Range
    from porter.models.fake_quant import _mean_hook

    random = np.random.default_rng(0)
    images = random.gamma(1, 0.5, (600, 1, 7, 7, channels)).astype(np.float32) - 0.3

    @tf.function(input_signature=[tf.TensorSpec((1, 7, 7, channels), tf.float32)])
    def mean(x):
        return tf.reduce_mean(x, (1, 2), keepdims=keepdims)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([mean.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image] for image in images[:50])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    kernels = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = lite.Interpreter(model_content=converter.convert(), experimental_op_resolver_type=kernels)
    runner.allocate_tensors()
    [given], [taken] = runner.get_input_details(), runner.get_output_details()
    (scale, zero), (out_scale, out_zero) = given["quantization"], taken["quantization"]
    low = (-128 - out_zero) * out_scale
    limits = Range(min=low, max=low + 255 * out_scale, scale=out_scale, axes_dropped=float(not keepdims))
    hook = _mean_hook(limits, scale, zero)
    found, ours = [], []
    for image in images:
        levels = np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8)
        runner.set_tensor(given["index"], levels)
        runner.invoke()
        found.append(runner.get_tensor(taken["index"]).ravel().astype(int))
        x = torch.from_numpy((levels.astype(np.float64) - zero) * scale).permute(0, 3, 1, 2)
        ours.append(np.round(hook(None, (x,), None).numpy().ravel() / out_scale).astype(int) + out_zero)
    assert len(np.unique(found)) > 50
    assert np.array_equal(ours, found)
