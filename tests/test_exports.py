"""Files for other runtimes, written without torch: what these compute from them."""

import numpy as np
import pytest
import torch
from lite import tflite_logits
from random_networks import images, trained

import porter
from porter.exports.program import program as made_program
from porter.exports.tflite_model import tflite_model
from porter.mapping.files import list_variants
from porter.sources.tflite_graph import read_graph

VARIANTS = list_variants()


@pytest.fixture(scope="module")
def lite():
    return pytest.importorskip("ai_edge_litert.interpreter")


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_by_its_own_reference(variant):
    """The definition of ONNX's operators, in numpy: no runtime's optimiser."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    from porter.exports.onnx_model import onnx_model

    model, x = trained(variant), images(2, 33, 40)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    program = made_program(model.network, model.num_classes, arrays)
    with torch.no_grad():
        expected = model(x).numpy()
    written = onnx_model(program, (33, 40))
    onnx.checker.check_model(written, full_check=True)
    [found] = ReferenceEvaluator(written).run(None, {"image": x.numpy()})
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert not any(node.op_type in ("Pad", "BatchNormalization") for node in written.graph.node)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("builtin", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tflite(lite, variant, builtin, tmp_path):
    model, x = trained(variant), images(2, 75, 64)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    content = tflite_model(made_program(model.network, 1000, arrays), (75, 64))
    with torch.no_grad():
        expected = model(x).numpy()
    for batch in (x[:1], x):
        found = tflite_logits(lite, content, np.ascontiguousarray(batch.permute(0, 2, 3, 1)), builtin)
        assert np.abs(found - expected[: len(batch)]).max() < 1e-5 * np.abs(expected).max()
    (tmp_path / "a.tflite").write_bytes(content)
    graph = read_graph(tmp_path / "a.tflite")
    starts = [tensor.start % 16 for tensor in graph.tensors if tensor.size]
    assert starts
    assert not any(starts)  # runtimes use constants where they lie


@pytest.mark.parametrize("builtin", [True, False])
def test_means_of_flat_maps(lite, builtin):
    """One sum of n numbers is up to n / 2 units off, if all additions round the same way; rows first, (H + W) / 2."""
    model = trained("small_075")
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    content = tflite_model(made_program(model.network, 1000, arrays), (224, 224))
    image = np.full((1, 224, 224, 3), -1, np.float32)
    image[:, :112] = 0.9, 0.3, -0.4
    kinds = lite.OpResolverType
    runner = lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else kinds.BUILTIN,
    )
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], image)
    runner.invoke()
    at = {tensor["name"]: tensor["index"] for tensor in runner.get_tensor_details()}
    maps, found = (runner.get_tensor(at[name]) for name in ("layer_2/depthwise_output", "blocks.0.0.se/mean"))
    means = maps.mean((1, 2), np.float64, keepdims=True)
    assert np.abs(found - means).max() <= (56 + 56) / 2 * 2**-24 * np.abs(means).max()


@pytest.mark.tensorflow
@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_the_command(demo_folder, tmp_path, run, suffix):
    """The same bytes each time, and the port that a .pth would be."""
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        ran = run("convert", demo_folder, "-o", path)
        assert ran.code == 0, ran.err
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == "tflite":
        pytest.importorskip("ai_edge_litert")
        back, _ = porter.convert(paths[0], tmp_path / "back.safetensors")
        once, _ = porter.convert(demo_folder, tmp_path / "once.safetensors", fold_bn=True)
        ran = run("diff", back, once, "--tolerance", "1e-6")
        assert ran.code == 0, ran.out
        ran = run("verify", paths[0])
    else:
        pytest.importorskip("onnxruntime")
        ran = run("verify", demo_folder, paths[0], "--reference", "tf.nn")
    assert ran.code == 0, ran.out + ran.err


def test_several(demo_folder, tmp_path, run):
    prefix = demo_folder / "ema" / "model-1000"
    other = tmp_path / "model-2000"
    for path in prefix.parent.glob("model-1000.*"):
        other.with_name(path.name.replace("1000", "2000")).symlink_to(path)
    ran = run("convert", prefix, other, "-o", tmp_path / "out", "--format", "safetensors")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model-1000.safetensors",
        "model-2000.safetensors",
    ]
    assert "is for several checkpoints" in run("convert", prefix, "--format", "onnx").err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3-small_224_1.0_uint8", "mobilenet_edgetpu_224_1.0_uint8"])
def test_integers_and_back(lite, shared, tmp_path, run, name):
    """What the authors quantised -> ours -> .tflite: the same levels of every class for every photo."""
    image = pytest.importorskip("PIL.Image")
    real = shared.parent / "real"
    source = real / f"{name}.tflite"
    if not source.is_file():
        pytest.skip(f"no {source}")
    ran = run("convert", source, "-o", tmp_path / "back.tflite", "--keep-background")
    assert ran.code == 0, ran.err
    photos = sorted((real / "images").iterdir())[:: 1 if name.startswith("v3") else 8]
    content = [path.read_bytes() for path in (source, tmp_path / "back.tflite")]
    for photo in photos:
        pixels = np.asarray(image.open(photo).convert("RGB").resize((224, 224)))[None]
        theirs, ours = (tflite_logits(lite, one, pixels) for one in content)
        assert ours.dtype == theirs.dtype == np.uint8
        assert ours.shape == theirs.shape == (1, 1001)
        assert np.array_equal(ours, theirs), photo.name
    assert "a .onnx is of a float network" in run("convert", source, "-o", tmp_path / "x.onnx").err
    assert run("convert", source, "-o", tmp_path / "x.onnx", "--no-fake-quant").code == 0
    ran = run("release", source, "--out", tmp_path / "dist", "--tflite", "--reference", "auto")
    assert ran.code == 0, ran.err
    assert "tflite      logits within 0.0e+00" in ran.out
