"""DeepLab's LR-ASPP: exact against the original code's graphs and outputs, masks, mean IoU."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest
import torch
from conftest import SHARED

import porter
from porter.mapping.files import list_segmenters
from porter.mapping.rules import expected_variables
from porter.models.lraspp import LRASPP
from porter.network.network import with_output_stride
from porter.port import plan_port
from porter.prediction.masks import palette
from porter.sources.bundle_writer import write_bundle

USERS = SHARED.parent / "real" / "lraspp_small_user.pb"


@pytest.fixture(scope="module", params=["large", "small"])
def oracle(request, unpacked):
    """(variant, unpacked folder, folder of recorded outputs)."""
    folder, source = unpacked(f"deeplab_v3_{request.param}")
    return f"lraspp_{request.param}", folder, source


def semantic(model, images):
    with torch.no_grad():
        return model.semantic(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def with_head(model, window=None, output_stride=None):
    """The same weights in a network whose pooling or stride is another."""
    network = model.network
    if window is not None:
        head = msgspec.structs.replace(network.segmentation, window=window)
        network = dataclasses.replace(network, segmentation=head)
    if output_stride is not None:
        network = with_output_stride(network, output_stride)
    other = LRASPP(network, model.num_classes).eval()
    other.load_state_dict(model.state_dict())
    return other


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("layout", ["slim", "timm"])
def test_recorded_outputs(oracle, layout):
    """All that the original code was run with: its pooling windows, and output strides."""
    variant, folder, source = oracle
    model = porter.create_model(variant, folder / "model.ckpt-0", layout=layout)
    assert model.network.segmentation.window == [5, 7]  # the .meta beside the checkpoint says so
    recorded = np.load(source / "expected.npz")
    images = recorded["input"]
    close(semantic(model, images), recorded["semantic"])
    with torch.no_grad():
        labels = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1).numpy()
    assert np.array_equal(labels, recorded["labels"])
    whole = with_head(model, [25, 25])  # a window larger than the map
    close(semantic(whole, images), recorded["alt_pool_equals_crop/semantic"])
    strides = np.load(source / "expected_output_stride_16_8.npz")
    for stride in (16, 8):
        dilated = with_head(model, [99, 99], stride)
        close(semantic(dilated, images[:1]), strides[f"os{stride}/semantic"])
    if layout == "timm":
        release = np.load(source / "expected_release_flags.npz")
        pixels = np.float32(2 / 255) * release["input_uint8"].astype(np.float32) - np.float32(1)
        close(semantic(with_head(model, [25, 25]), pixels), release["semantic"])


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("graph", ["model.ckpt-0", "frozen.pb"])
@pytest.mark.parametrize("reference", ["auto", "tf.nn"])
def test_original_graphs(oracle, graph, reference, run, tmp_path):
    """Every endpoint of backbone and head in float64 and float32."""
    variant, folder, _ = oracle
    ran = run("convert", folder / graph, "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    assert f"variant   {variant} (found from the shapes)" in ran.out
    assert "classes   19" in ran.out
    ran = run("verify", folder / graph, tmp_path / "a.safetensors", "--reference", reference)
    assert ran.code == 0, ran.out + ran.err
    endpoints = 66 if "large" in variant else 50
    assert f"{endpoints} endpoints" in ran.out
    assert "same function" in ran.out


@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
def test_a_users_segmenter(run, tmp_path):
    """Trained, five classes, another window and epsilon, which the graph says."""
    ran = run("convert", USERS, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    head = porter.create_model("lraspp_small", tmp_path / "a.pth").network.segmentation
    assert (head.window, head.stride, head.epsilon) == ([13, 25], [4, 5], 1.001e-5)
    ran = run("predict", tmp_path / "a.pth", next((SHARED.parent / "real" / "images").iterdir()))
    assert ran.code == 2
    assert "is a segmenter, no classifier; for its masks use --masks FOLDER" in ran.err


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
def test_a_users_segmenter_verifies(run, tmp_path):
    """At 513x1025, the only size of its graph."""
    assert run("convert", USERS, "-o", tmp_path / "a.pth").code == 0
    ran = run("verify", USERS, tmp_path / "a.pth")
    assert ran.code == 0, ran.out + ran.err
    assert "50 endpoints" in ran.out


def test_names_are_torchvisions(timm):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19).state_dict()
    ours = porter.create_model("lraspp_large", num_classes=19).state_dict()
    assert set(ours) - set(theirs) == {"classifier.scale.1.bias"}  # DeepLab's has one
    assert set(theirs) <= set(ours)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A segmenter of random weights that no graph comes with, in a scope of its own; four classes."""
    from porter.mapping.files import load_variant
    from porter.network.network import build_network

    mapping = load_variant("lraspp_small")
    random = np.random.default_rng(0)
    values = {}
    for want in expected_variables(mapping, build_network(mapping), classes=4):
        spread = random.normal(0, 0.1, want.shape) if len(want.shape) == 4 else random.uniform(0.5, 1, want.shape)
        values[want.source] = spread.astype(np.float32)
    prefix = tmp_path_factory.mktemp("segmenter") / "model-7"
    write_bundle(prefix, values)
    return prefix


@pytest.mark.tensorflow
def test_of_our_own_making(made, tf, run, tmp_path):
    """What the tests need they make: our graph in tf.nn, at odd sizes; back to TensorFlow; ONNX."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.safetensors"
    assert run("convert", made, "-o", path).code == 0
    ran = run("verify", made, path, "--size", "97x65", "--size", "64x75")
    assert ran.code == 0, ran.out + ran.err
    ran = run("verify", made, path, "--size", "97x65", "--deploy")
    assert ran.code == 0, ran.out + ran.err
    assert run("export-tf", path, tmp_path / "back").code == 0
    assert run("convert", tmp_path / "back", "-o", tmp_path / "b.safetensors").code == 0
    assert run("diff", path, tmp_path / "b.safetensors").code == 0
    model = porter.create_model("lraspp_small", path)
    images = torch.rand(2, 3, 97, 64) * 2 - 1
    with torch.no_grad():
        expected = model(images)
    found = porter.deploy(model, (97, 64))(images)
    assert found.shape == expected.shape == (2, 4, 97, 64)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert run("convert", made, "-o", tmp_path / "a.onnx").code == 0
    assert "a segmenter has no .tflite form" in run("convert", made, "-o", tmp_path / "a.tflite").err
    with pytest.raises(porter.PorterError, match="of one size"):
        porter.deploy(model)
    assert "batch norms of a segmenter" in run("convert", made, "--fold-bn", "-o", tmp_path / "c.pth").err


def test_other_shapes_of_it(made, tmp_path):
    path, _ = porter.convert(made, tmp_path / "a.pth")
    assert porter.create_model("lraspp_small", path, num_classes=9)(torch.zeros(1, 3, 64, 64)).shape == (1, 9, 64, 64)
    maps = porter.create_model("lraspp_small", made, features_only=True)(torch.zeros(1, 3, 64, 64))
    assert [one.shape[1] for one in maps] == [16, 16, 24, 48, 288]
    with pytest.raises(porter.PorterError, match="port the backbone alone"):
        porter.create_model("lraspp_small", path, features_only=True)
    strided = porter.create_model("lraspp_small", path, output_stride=8)
    assert strided(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)


def test_masks(made, run, tmp_path):
    """Masks with a palette, at the photo's size; and the mean IoU that follows from labels."""
    image = pytest.importorskip("PIL.Image")
    path, photos = tmp_path / "a.pth", tmp_path / "photos"
    photos.mkdir()
    assert run("convert", made, "-o", path).code == 0
    random = np.random.default_rng(1)
    for name in ("one", "two"):
        image.fromarray(random.integers(0, 255, (61, 83, 3), np.uint8)).save(photos / f"{name}.png")
    ran = run("predict", path, photos, "--masks", tmp_path / "masks")
    assert ran.code == 0, ran.err
    mask = image.open(tmp_path / "masks" / "one.png")
    assert (mask.mode, mask.size) == ("P", (83, 61))
    model = porter.create_model("lraspp_small", path)
    pixels = torch.from_numpy(np.asarray(image.open(photos / "one.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = model(pixels)[0].argmax(0).numpy()
    assert (np.asarray(mask) != expected).mean() < 1e-3  # ties of float32
    shares = np.bincount(np.asarray(mask).ravel()) / (61 * 83)
    assert f"{100 * shares.max():.2f}%" in ran.out
    assert "exists already" in run("predict", path, photos, "--masks", tmp_path / "masks").err
    ran = run("predict", path, photos, "--masks", tmp_path / "masks", "--force", "--json")
    [one, _] = [json.loads(line) for line in ran.out.splitlines()]
    assert sum(found["share"] for found in one["classes"]) == pytest.approx(1)
    assert one["mask"] == str(tmp_path / "masks" / "one.png")
    assert run("predict", path, photos, "--masks", tmp_path / "masks", "--force").code == 0
    ran = run("evaluate", path, photos, "--masks", tmp_path / "masks", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["mean_iou"] == 1.0
    labels = np.asarray(image.open(tmp_path / "masks" / "one.png")).copy()
    labels[:30] = 255  # does not count
    labels[30:40] = (labels[30:40] + 1) % 4
    image.fromarray(labels).save(tmp_path / "masks" / "one.png")
    found = json.loads(run("evaluate", path, photos, "--masks", tmp_path / "masks", "--json").out)
    wrong, counted = 10 * 83, (61 - 30) * 83 + 61 * 83
    assert found["accuracy"] == pytest.approx(1 - wrong / counted)
    (tmp_path / "masks" / "two.png").unlink()
    assert "two.png: no such label" in run("evaluate", path, photos, "--masks", tmp_path / "masks").err


def test_masks_of_a_classifier(demo_folder, run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    ran = run("predict", demo_folder, tmp_path / "a.png", "--masks", tmp_path / "masks")
    assert ran.code == 2
    assert "is no segmenter; it has no masks" in ran.err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("command", "option", "ignored"),
    [
        ("predict", "--masks", ("--html", "page.html")),
        ("predict", "--masks", ("--least", "0.5")),
        ("predict", "--boxes", ("--top", "3")),
        ("evaluate", "--masks", ("--compare", "other.pth")),
        ("evaluate", "--boxes", ("--per-class", "a.csv")),
    ],
)
def test_options_that_would_be_ignored(demo_folder, run, tmp_path, command, option, ignored):
    ran = run(command, demo_folder, tmp_path, option, tmp_path / "out", *ignored)
    assert ran.code == 2
    assert f"{ignored[0]} has no meaning with {option}" in ran.err


def test_palette():
    """PASCAL VOC's, as its devkit lists it."""
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    assert colours[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [224, 224, 192],
    ]  # fmt: skip


def test_damaged_graph(made, tmp_path, run):
    """A .meta that pools over nothing, or is no graph."""
    for path in made.parent.glob("model-7*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model-7.meta").write_bytes(b"\xff" * 100)
    ran = run("convert", tmp_path / "model-7", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "model-7.meta: the graph is damaged" in ran.err


def test_half_a_segmenter(made, tmp_path, run):
    from porter.sources import open_checkpoint

    values = {name: variable.read() for name, variable in open_checkpoint(made).items()}
    del values["aspp0/weights"]
    write_bundle(tmp_path / "half", values)
    ran = run("convert", tmp_path / "half", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "holds a small_seg backbone" in ran.err
    ran = run("convert", tmp_path / "half", "--variant", "lraspp_small", "-o", tmp_path / "a.pth")
    assert ran.code == 2


def test_segmenters_are_no_classifiers():
    assert set(list_segmenters()) == {"lraspp_large", "lraspp_small"}
    assert not set(list_segmenters()) & set(porter.list_variants())


def test_the_plan_names_what_it_found(made):
    port = plan_port(made)
    assert (port.mapping.variant, port.plan.num_classes) == ("lraspp_small", 4)
    assert port.network.segmentation.window == [25, 25]  # no graph: the flags of the model zoo


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
def test_release(run, tmp_path):
    pytest.importorskip("onnxruntime")
    ran = run("release", USERS, "--out", tmp_path / "dist", "--onnx")
    assert ran.code == 0, ran.err
    assert run("release", "--check", tmp_path / "dist").code == 0
    card = (tmp_path / "dist" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "--masks masks/" in card
    assert "Embeddings" not in card
