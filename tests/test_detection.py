"""SSDLite: exact against the original code's graph and outputs, anchors, boxes, suppression, mean average precision."""

import json

import numpy as np
import pytest
import torch

import porter
from porter.mapping.files import list_detectors, load_variant
from porter.mapping.rules import expected_variables
from porter.network.anchors import anchors, decoded, map_sizes
from porter.network.network import build_network
from porter.prediction.boxes import suppressed
from porter.sources.bundle_writer import write_bundle


@pytest.fixture(scope="module")
def oracle(unpacked):
    """(unpacked folder, recorded outputs)."""
    folder, source = unpacked("ssd_v3_small")
    return folder, np.load(source / "expected.npz")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A detector of random weights: five classes and the background."""
    return make("ssdlite_small", tmp_path_factory)


def make(variant, tmp_path_factory):
    mapping = load_variant(variant)
    random = np.random.default_rng(0)
    values = {}
    for want in expected_variables(mapping, build_network(mapping), classes=6):
        spread = random.normal(0, 0.1, want.shape) if len(want.shape) == 4 else random.uniform(0.5, 1, want.shape)
        values[want.source] = spread.astype(np.float32)
    prefix = tmp_path_factory.mktemp("detector") / "model-3"
    write_bundle(prefix, values)
    return prefix


@pytest.mark.parametrize("layout", ["slim", "timm"])
def test_recorded_outputs(oracle, layout):
    folder, recorded = oracle
    model = porter.create_model("ssdlite_small", folder / "model.ckpt-0", layout=layout)
    with torch.no_grad():
        found = model(torch.from_numpy(recorded["input"]).permute(0, 3, 1, 2))
    for ours, name in zip(found, ("box_encodings", "class_predictions_with_background"), strict=True):
        expected = recorded[name]
        # TensorFlow's own graph, run again, differs by 5.6e-5 of 10
        assert np.abs(ours.numpy() - expected).max() < 5e-5 * np.abs(expected).max()


def test_anchors_and_boxes(oracle):
    """Equal to TensorFlow's to the rounding of float32."""
    _, recorded = oracle
    network = build_network(load_variant("ssdlite_small"))
    assert map_sizes(network, 320, 320) == [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    found = anchors(network, 320, 320)
    assert found.shape == (2034, 4)
    unit = np.finfo(np.float32).eps
    assert np.abs(found - recorded["anchors_center_size"]).max() <= 2 * unit
    y, x, height, width = found.T
    corners = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    assert np.abs(corners - recorded["anchors"]).max() <= 2 * unit
    boxes = decoded(recorded["box_encodings"], found, network.detection.coder)
    assert np.abs(boxes - recorded["raw_detection_boxes"]).max() < 3e-7


def test_suppression_is_tensorflows(oracle):
    pytest.importorskip("onnxruntime")
    _, recorded = oracle
    for image in range(2):
        logits = recorded["class_predictions_with_background"][image][:, 1:].astype(np.float64)
        found = suppressed(recorded["raw_detection_boxes"][image], (1 / (1 + np.exp(-logits))).astype(np.float32))
        assert len(found) == recorded["nms/num_detections"][image]
        assert [box.number - 1 for box in found] == recorded["nms/detection_classes"][image].tolist()
        assert np.array_equal(np.array([box[:4] for box in found], np.float32), recorded["nms/detection_boxes"][image])
        assert np.abs([box.score for box in found] - recorded["nms/detection_scores"][image]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("graph", ["model.ckpt-0", "frozen.pb"])
@pytest.mark.parametrize("reference", ["auto", "tf.nn"])
def test_original_graphs(oracle, graph, reference, run, tmp_path):
    """Every endpoint of backbone and head in float64 and float32."""
    folder, _ = oracle
    ran = run("convert", folder / graph, "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    assert "variant   ssdlite_small (found from the shapes)" in ran.out
    assert "classes   91" in ran.out
    ran = run("verify", folder / graph, tmp_path / "a.safetensors", "--reference", reference)
    assert ran.code == 0, ran.out + ran.err
    assert "81 endpoints" in ran.out
    assert "no output" not in ran.out


@pytest.mark.tensorflow
def test_of_our_own_making(made, tf, run, tmp_path):
    path = tmp_path / "a.safetensors"
    ran = run("convert", made, "-o", path)
    assert ran.code == 0, ran.err
    assert "classes   6" in ran.out
    ran = run("verify", made, path, "--size", "97x65")
    assert ran.code == 0, ran.out + ran.err
    assert run("export-tf", path, tmp_path / "back").code == 0
    assert run("convert", tmp_path / "back", "-o", tmp_path / "b.safetensors").code == 0
    assert run("diff", path, tmp_path / "b.safetensors").code == 0
    assert "a detector has no .onnx form" in run("convert", made, "-o", tmp_path / "a.onnx").err
    with pytest.raises(porter.PorterError, match="SSDLite: only"):
        porter.deploy(porter.create_model("ssdlite_small", path))


@pytest.mark.slow  # test_ssd_graph.py has an oracle for them that is not of our table
@pytest.mark.tensorflow
@pytest.mark.parametrize("variant", [name for name in list_detectors() if name != "ssdlite_small"])
def test_other_tables(tf, tmp_path_factory, tmp_path, run, variant):
    """Large, minimalistic, EdgeTPU: found from the shapes, and every endpoint is that of our graph in tf.nn."""
    source = make(variant, tmp_path_factory)
    ran = run("convert", source, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert f"variant   {variant} (found from the shapes)" in ran.out
    ran = run("verify", source, tmp_path / "a.pth", "--size", "65x48", "--dtype", "float64")
    assert ran.code == 0, ran.out + ran.err
    assert "no output" not in ran.out


@pytest.mark.parametrize("name", list_detectors())
def test_every_table(name):
    """As many predictions as anchors; the large network's first map is that of its 14th layer."""
    model = porter.create_model(name, num_classes=4)
    with torch.no_grad():
        encodings, logits = model(torch.zeros(1, 3, 128, 96))
    count = len(anchors(model.network, 128, 96))
    assert encodings.shape == (1, count, 4)
    assert logits.shape == (1, count, 4)


def test_predict(made, run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("onnxruntime")
    random = np.random.default_rng(1)
    image.fromarray(random.integers(0, 255, (61, 83, 3), np.uint8)).save(tmp_path / "one.png")
    assert run("convert", made, "-o", tmp_path / "a.pth").code == 0
    ran = run(
        "predict", tmp_path / "a.pth", tmp_path / "one.png", "--boxes", tmp_path / "out", "--least", "0", "--json"
    )
    assert ran.code == 0, ran.err
    boxes = json.loads(ran.out)["boxes"]
    assert 1 <= len(boxes) <= 100
    assert all(0 <= box["top"] <= box["bottom"] <= 1 and 1 <= box["number"] <= 5 for box in boxes)
    assert [box["score"] for box in boxes] == sorted((box["score"] for box in boxes), reverse=True)
    assert image.open(tmp_path / "out" / "one.png").size == (83, 61)
    ran = run("predict", tmp_path / "a.pth", tmp_path / "one.png")
    assert "is a detector, no classifier; for its boxes use --boxes FOLDER" in ran.err
    assert "exists already" in run("predict", tmp_path / "a.pth", tmp_path / "one.png", "--boxes", tmp_path / "out").err


def test_mean_average_precision(made, run, tmp_path):
    """What the detector itself finds, told as the truth, is found; boxes elsewhere are not."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(2)
    image.fromarray(random.integers(0, 255, (200, 300, 3), np.uint8)).save(photos / "one.png")
    assert run("convert", made, "-o", tmp_path / "a.pth").code == 0
    options = ("--boxes", tmp_path / "out", "--least", "0", "--json")
    [best, *_] = json.loads(run("predict", tmp_path / "a.pth", photos, *options).out)["boxes"]

    def annotations(shift, name="one.png"):
        left, top = best["left"] * 300 + shift, best["top"] * 200
        wide, tall = (best["right"] - best["left"]) * 300, (best["bottom"] - best["top"]) * 200
        box = {"id": 1, "image_id": 1, "category_id": best["number"], "bbox": [left, top, wide, tall], "iscrowd": 0}
        return {
            "images": [{"id": 1, "file_name": name, "height": 200, "width": 300}],
            "annotations": [box | {"area": wide * tall}],
            "categories": [{"id": number, "name": str(number)} for number in range(1, 6)],
        }

    file = tmp_path / "truth.json"
    file.write_text(json.dumps(annotations(0)))
    ran = run("evaluate", tmp_path / "a.pth", photos, "--boxes", file)
    assert ran.code == 0, ran.err
    assert "mAP 100.00%, at 0.5 100.00%, at 0.75 100.00%, 1 images" in ran.out
    file.write_text(json.dumps(annotations(10_000)))
    assert json.loads(run("evaluate", tmp_path / "a.pth", photos, "--boxes", file, "--json").out)["mean"] == 0
    file.write_text(json.dumps(annotations(0, "../truth.json")))
    assert "no such image in" in run("evaluate", tmp_path / "a.pth", photos, "--boxes", file).err
    for text in ("[]", "{", '{"images": [1]}', ""):
        file.write_text(text)
        ran = run("evaluate", tmp_path / "a.pth", photos, "--boxes", file)
        assert ran.code == 2
        assert "not COCO's JSON of boxes" in ran.err


def test_half_a_detector(made, run, tmp_path):
    from porter.sources import open_checkpoint

    values = {name: variable.read() for name, variable in open_checkpoint(made).items()}
    del values["BoxPredictor_3/BoxEncodingPredictor/weights"]
    write_bundle(tmp_path / "half", values)
    ran = run("convert", tmp_path / "half", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "holds a small_detection backbone" in ran.err
    ran = run("convert", tmp_path / "half", "--variant", "ssdlite_small", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_release(oracle, run, tmp_path):
    folder, _ = oracle
    ran = run("release", folder / "model.ckpt-0", "--out", tmp_path / "dist")
    assert ran.code == 0, ran.err
    assert run("release", "--check", tmp_path / "dist").code == 0
    card = (tmp_path / "dist" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert "--boxes boxes/" in card
