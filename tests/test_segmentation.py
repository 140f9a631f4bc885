"""DeepLab's LR-ASPP: exact against the original code's graphs and outputs, masks, mean IoU."""

import csv
import dataclasses
import json
import re

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import SHARED
from json_schemas import check_json
from random_networks import checkpoint_with_head

import porter
from porter.errors import NotTheNetworkError
from porter.mapping.files import list_with_head, load_variant
from porter.models.lraspp import LRASPP
from porter.network.network import with_output_stride
from porter.port import plan_port
from porter.prediction.network import palette
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle
from porter.sources.stored_graph import StoredGraph

USERS = SHARED.parent / "real" / "lraspp_small_user.pb"


@pytest.fixture(scope="module", params=["large", "small"])
def oracle(request, unpacked):
    """(variant, unpacked folder, folder of recorded outputs)."""
    folder, source = unpacked(f"deeplab_v3_{request.param}")
    return f"lraspp_{request.param}", folder, source


def semantic(model, images):
    with torch.no_grad():
        return model.semantic(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def with_head(model, window, blocks=None):
    """The same weights in a network whose pooling, or strides, are others."""
    network = model.network
    head = msgspec.structs.replace(network.head, window=window)
    network = dataclasses.replace(network, head=head, blocks=blocks or network.blocks)
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
    assert model.network.head.window == [5, 7]  # the .meta beside the checkpoint says so
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
        dilated = with_head(model, [99, 99], with_output_stride(load_variant(variant), stride).blocks)
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
    head = porter.create_model("lraspp_small", tmp_path / "a.pth").network.head
    assert (head.window, head.stride, head.epsilon) == ([13, 25], [4, 5], 1.001e-5)
    ran = run("predict", tmp_path / "a.pth", next((SHARED.parent / "real" / "images").iterdir()))
    assert ran.code == 0, ran.err
    assert "%" in ran.out


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
def test_a_users_segmenter_verifies(run, tmp_path):
    """At 513x1025, the only size of its graph; also its plain state dict, and in ONNX Runtime."""
    assert run("convert", USERS, "-o", tmp_path / "a.pth").code == 0
    torch.save(dict(porter.create_model("lraspp_small", tmp_path / "a.pth").state_dict()), tmp_path / "plain.pth")
    for port, *options in (("a.pth",), ("plain.pth",), ("a.pth", "--deploy")):
        ran = run("verify", USERS, tmp_path / port, *options)
        assert ran.code == 0, ran.out + ran.err
        assert "50 endpoints" in ran.out


# How the same user exported it: its forms in float, and what the last two took of its training in 8 bits
FORMS = [("f", None), *(pytest.param(form, False, marks=pytest.mark.slow) for form in ("fq", "q"))]


@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
@pytest.mark.parametrize(("form", "fake_quant"), FORMS)
def test_a_users_tflite(run, tmp_path, form, fake_quant):
    path = USERS.parent / "lraspp_user" / f"seg_graph_{form}.tflite"
    porter.convert(path, tmp_path / "a.safetensors", fake_quant=fake_quant)
    head = porter.create_model("lraspp_small", tmp_path / "a.safetensors").network.head
    assert (head.window, head.stride) == ([13, 25], [4, 5])
    if form == "f":
        porter.convert(USERS, tmp_path / "b.safetensors", fold_bn=True)
        found, expected = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in "ab")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # The file's converter folded in float32, and added 3 to the biases before gates
            assert np.abs(found[name] - value).max() <= 5e-6 * max(np.abs(value).max(), 0.1), name
    ran = run("verify", path, tmp_path / "a.safetensors", *(["--no-fake-quant"] if form != "f" else []))
    assert ran.code == 0, ran.out + ran.err


@pytest.mark.tensorflow
@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
def test_a_users_tflite_in_its_own_runtime():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = str(USERS.parent / "lraspp_user" / "seg_graph_f.tflite")
    runner = litert.Interpreter(path, experimental_preserve_all_tensors=True)
    runner.allocate_tensors()
    images = np.random.default_rng(0).uniform(-1, 1, (1, 9, 17, 3)).repeat(57, 1).repeat(61, 2)[:, :513, :1025]
    runner.set_tensor(runner.get_input_details()[0]["index"], images.astype(np.float32))
    runner.invoke()
    [last] = (one["index"] for one in runner.get_tensor_details() if one["name"] == "ResizeBilinear_2")
    model = porter.create_model("lraspp_small", path)
    with torch.no_grad():
        ours = model(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    theirs = runner.get_tensor(last)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()  # the interpreter's own rounding of means


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("form", ["float", "float16", "dynamic range"])
def test_what_tensorflows_converter_makes_of_the_original_graph(tf, unpacked, run, tmp_path, form):
    folder, source = unpacked("deeplab_v3_small")
    ends = {"input_arrays": ["input"], "output_arrays": ["ResizeBilinear_2"]}
    converter = tf.compat.v1.lite.TFLiteConverter.from_frozen_graph(str(folder / "frozen.pb"), **ends)
    converter.optimizations = [] if form == "float" else [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16] if form == "float16" else []
    (tmp_path / "a.tflite").write_bytes(converter.convert())
    ran = run("verify", tmp_path / "a.tflite")
    assert ran.code == 0, ran.out + ran.err
    assert "49 endpoints" in ran.out
    recorded = np.load(source / "expected.npz")
    found = semantic(porter.create_model("lraspp_small", tmp_path / "a.tflite"), recorded["input"])
    error = np.abs(found - recorded["semantic"]).max() / np.abs(recorded["semantic"]).max()
    assert error < {"float": 1e-5, "float16": 0.02, "dynamic range": 0.2}[form]


@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
@pytest.mark.parametrize("form", ["q", "i8"])
def test_8_bits_behind_the_backbone_are_refused(form, run, tmp_path):
    path = USERS.parent / "lraspp_user" / f"seg_graph_{form}.tflite"
    ran = run("convert", path, "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "alone can be ported with its 8 bits; for the whole network in float use --no-fake-quant" in ran.err


@pytest.mark.skipif(not USERS.is_file(), reason="no real files")
@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("decoder/ResizeBilinear", {"corners": False}, "no resize of aspp0/scaled and"),
        ("ResizeBilinear_2", {"window": (257, 513)}, "no resize of semantic and image"),
        ("AvgPool2D/AvgPool", {"padding": "same"}, "no pool of layer_13"),
        ("aspp0/Relu/relu", {"kind": "relu6"}, "no convolution of layer_13 .aspp0"),
        ("image_pooling/mul", {"kind": "sigmoid"}, "no activation of image_pooling"),
        ("mul_1", {"kind": "add"}, "no multiply of aspp0"),
        ("decoder/feature_projection0/BiasAdd", {"inputs": ("MobilenetV3/Conv/hard_swish/mul_1",)}, "no convolution"),
    ],
)
def test_another_head_in_a_graph_is_refused(name, changed, told):
    opened = open_checkpoint(USERS.parent / "lraspp_user" / "seg_graph_f.tflite")
    operations = opened.graph.operations
    assert name in operations
    other = [msgspec.structs.replace(one, **changed) if one.name == name else one for one in operations.values()]
    graph = StoredGraph(other, opened.graph.outputs)
    with pytest.raises(NotTheNetworkError, match=told):
        plan_port(dataclasses.replace(opened, read_graph=lambda: graph))


def test_names_are_torchvisions(timm):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19).state_dict()
    ours = porter.create_model("lraspp_large", num_classes=19).state_dict()
    assert set(ours) - set(theirs) == {"classifier.scale.1.bias"}  # DeepLab's has one
    assert set(theirs) <= set(ours)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A segmenter of random weights that no graph comes with, in a scope of its own; four classes."""
    return checkpoint_with_head("lraspp_small", tmp_path_factory, classes=4)


@pytest.mark.slow
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
    with pytest.raises(porter.PorterError, match="of one size"):
        porter.deploy(model)
    assert run("convert", made, "--fold-bn", "-o", tmp_path / "c.pth").code == 0
    ran = run("verify", made, tmp_path / "c.pth", "--size", "97x65")
    assert ran.code == 0, ran.out + ran.err


def test_other_shapes_of_it(made, tmp_path):
    path, _ = porter.convert(made, tmp_path / "a.pth")
    assert porter.create_model("lraspp_small", path, num_classes=9)(torch.zeros(1, 3, 64, 64)).shape == (1, 9, 64, 64)
    maps = porter.create_model("lraspp_small", made, features_only=True)(torch.zeros(1, 3, 64, 64))
    assert [one.shape[1] for one in maps] == [16, 16, 24, 48, 288]
    with pytest.raises(porter.PorterError, match="port the backbone alone"):
        porter.create_model("lraspp_small", path, features_only=True)
    strided = porter.create_model("lraspp_small", path, output_stride=8)
    assert strided(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)


@pytest.fixture
def labelled(made, run, tmp_path):
    """(artifact, folder of two photos, folder of what the artifact makes of them)."""
    image = pytest.importorskip("PIL.Image")
    path, photos = tmp_path / "a.pth", tmp_path / "photos"
    photos.mkdir()
    assert run("convert", made, "-o", path).code == 0
    random = np.random.default_rng(1)
    for name in ("one", "two"):
        image.fromarray(random.integers(0, 255, (61, 83, 3), np.uint8)).save(photos / f"{name}.png")
    assert run("predict", path, photos, "-o", tmp_path / "masks").code == 0
    return path, photos, tmp_path / "masks"


def relabel(masks, change):
    """Change the labels of the first photo by a function."""
    from PIL import Image

    labels = np.asarray(Image.open(masks / "one.png")).copy()
    change(labels)
    Image.fromarray(labels).save(masks / "one.png")


def test_mean_iou(labelled, run, tmp_path):
    """That of its own masks, and what follows from labels that differ in some pixels, class by class."""
    path, photos, masks = labelled
    found = json.loads(run("evaluate", path, photos, "--labels", masks, "--json").out)
    check_json(found, "evaluate_scores")
    assert (found["mean_iou"], found["pixel_accuracy"], found["images"]) == (1.0, 1.0, 2)
    [number] = found["iou"]  # random weights have one favourite
    other = (int(number) + 1) % 4

    def change(labels):
        labels[:30] = 255  # does not count
        labels[30:40] = other

    relabel(masks, change)
    (tmp_path / "names.txt").write_text("sky\nroad\n<i>tree\n<b>sea\n")
    options = ("--labels", masks, "--class-names", tmp_path / "names.txt")
    ran = run("evaluate", path, photos, *options, "--json", "--per-class", tmp_path / "classes.csv")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    wrong, counted = 10 * 83, (61 - 30) * 83 + 61 * 83
    assert found["pixel_accuracy"] == pytest.approx(1 - wrong / counted)
    assert found["iou"] == pytest.approx({number: 1 - wrong / counted, str(other): 0.0})
    assert found["mean_iou"] == pytest.approx((1 - wrong / counted) / 2)
    rows = list(csv.reader((tmp_path / "classes.csv").open()))
    names = ["sky", "road", "<i>tree", "<b>sea"]
    assert rows[0] == ["class", "name", "iou"]
    assert [(row[0], row[1]) for row in rows[1:]] == [(str(n), names[n]) for n in sorted([int(number), other])]
    assert {row[0]: float(row[2]) for row in rows[1:]} == pytest.approx(found["iou"])
    ran = run("evaluate", path, photos, *options, "--per-class", tmp_path / "classes.csv")
    assert (ran.code, "exists already" in ran.err) == (2, True)
    again = ("--per-class", tmp_path / "classes.csv", "--force", "--html", tmp_path / "page.html")
    ran = run("evaluate", path, photos, *options, *again)
    share = f"{100 * (1 - wrong / counted):.2f}"
    first, *rows = ran.out.splitlines()
    assert first == f"{path}: mean IoU {found['mean_iou']:.2%}, pixel accuracy {share}%, 2 images"
    assert f"{share}%     {number}  {names[int(number)]}" in {row.strip() for row in rows}
    page = (tmp_path / "page.html").read_text()
    assert "<b>sea" not in page
    assert "&lt;b&gt;sea" in page
    for name, value in (("mean IoU", f"{100 * found['mean_iou']:.2f}"), ("pixel accuracy", share)):
        assert f"<dt>{name}</dt><dd>{value} %</dd>" in page
    assert re.search(rf'<td class="number">{number}</td><td>.*sea</td><td class="number">{share} %</td>', page)


def test_labels_of_masks(labelled, run, tmp_path, monkeypatch):
    """What is no label of these photos is refused in one line, before it is decoded."""
    image = pytest.importorskip("PIL.Image")
    path, photos, masks = labelled

    def refused(*options):
        ran = run("evaluate", path, photos, *options)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        return ran.err

    assert f"{path}: a segmenter needs the folder of masks, PNGs under" in refused()
    (tmp_path / "labels.csv").write_text("one.png,1\n")
    assert "a segmenter needs the folder of masks" in refused("--labels", tmp_path / "labels.csv")
    whole = (masks / "one.png").read_bytes()

    def change(labels):
        labels[3, 4] = 33

    relabel(masks, change)
    assert f"{masks / 'one.png'}: class 33; {path} has 4 classes" in refused("--labels", masks)
    (masks / "one.png").write_bytes(whole[:-30])
    assert "one.png: not a readable PNG" in refused("--labels", masks)
    image.new("L", (14_000, 14_000)).save(masks / "one.png", compress_level=1)  # beyond twice Pillow's limit of pixels
    assert "one.png: not a readable PNG" in refused("--labels", masks)
    image.new("L", (83, 62)).save(masks / "one.png")
    assert "one.png: 83 x 62 pixels; its image has 83 x 61" in refused("--labels", masks)
    image.new("RGB", (83, 61)).save(masks / "one.png")
    assert "(8 bits or a palette), not RGB" in refused("--labels", masks)
    image.new("L", (83, 61), 255).save(masks / "one.png")
    image.new("L", (83, 61), 255).save(masks / "two.png")
    assert "no labelled pixel" in refused("--labels", masks)
    (masks / "two.png").unlink()
    assert "two.png: no such label" in refused("--labels", masks)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (masks / "two.png").write_bytes(whole)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda _: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert "only a classifier's evaluation is shared among processes" in refused("--labels", masks)


def test_unreadable_photos_of_masks(labelled, run, tmp_path):
    path, photos, masks = labelled
    whole = json.loads(run("evaluate", path, photos, "--labels", masks, "--json").out)
    (photos / "bad.jpg").write_bytes(b"no image")
    (masks / "bad.png").write_bytes((masks / "one.png").read_bytes())
    ran = run("evaluate", path, photos, "--labels", masks)
    assert (ran.code, "bad.jpg: not a readable image" in ran.err) == (2, True)
    skip = ("--labels", masks, "--skip-unreadable", "--html", tmp_path / "page.html")
    ran = run("evaluate", path, photos, *skip, "--json")
    assert json.loads(ran.out) == whole | {"skipped": [str(photos / "bad.jpg")]}
    assert "1 could not be read" in (tmp_path / "page.html").read_text()
    ran = run("evaluate", path, photos, *skip)
    assert f"skipped    1 image that could not be read: {photos / 'bad.jpg'}" in ran.out


def test_large_photos_are_made_smaller(labelled, run, tmp_path, monkeypatch):
    """And their masks larger again."""
    from PIL import Image

    path, photos, masks = labelled
    monkeypatch.setattr("porter.prediction.masks.LONGEST", 40)
    assert run("predict", path, photos, "-o", tmp_path / "small").code == 0
    assert Image.open(tmp_path / "small" / "one.png").size == Image.open(masks / "one.png").size == (83, 61)


def test_palette():
    """PASCAL VOC's, as its devkit lists it."""
    assert palette()[[0, 1, 2, 3, 15, 255]].tolist() == [
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
    assert set(list_with_head("segmentation")) == {"lraspp_large", "lraspp_small"}
    assert not set(list_with_head("segmentation")) & set(porter.list_variants())


def test_the_plan_names_what_it_found(made):
    port = plan_port(made)
    assert (port.mapping.variant, port.plan.num_classes) == ("lraspp_small", 4)
    assert port.network.head.window == [25, 25]  # no graph: the flags of the model zoo


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
    assert "predict . photo.jpg -o masks/" in card
    assert "Embeddings" not in card


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("port", "code", "said"),
    [
        ("own", 0, "51 endpoints"),
        pytest.param("semantic", 0, "50 endpoints", marks=pytest.mark.slow),
        pytest.param("channels_last", 0, "51 endpoints", marks=pytest.mark.slow),
        ("without_align_corners", 1, "another function, from logits on"),
        pytest.param("classes_rolled", 1, "what it returns is its logits rolled by 1", marks=pytest.mark.slow),
    ],
)
def test_a_segmenter_as_a_module(made, tf, verify_head, port, code, said):
    """Its block returns a tuple, and a residual sum is no module's output."""
    ran = verify_head("lraspp_small", made, port)
    assert (ran.code, said in ran.out) == (code, True), ran.out + ran.err
