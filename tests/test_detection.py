"""SSDLite: exact against the original code's graph and outputs, anchors, boxes, suppression, mean average precision."""

import json

import numpy as np
import pytest
import torch
from json_schemas import check_json
from random_networks import checkpoint_with_head

import porter
from porter.mapping.files import list_with_head, load_variant
from porter.network.detection import decoded
from porter.network.network import build_network
from porter.network.node import map_sizes
from porter.network.nodes import anchors, groups, nodes
from porter.sources.bundle_writer import write_bundle


@pytest.fixture(scope="module")
def oracle(unpacked):
    """(unpacked folder, recorded outputs)."""
    folder, source = unpacked("ssd_v3_small")
    return folder, np.load(source / "expected.npz")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A detector of random weights: five classes and the background."""
    return checkpoint_with_head("ssdlite_small", tmp_path_factory)


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
    sizes = map_sizes(nodes(network, classes=2), 320, 320)
    maps = [group.nodes[0].inputs[0] for group in groups(network, classes=2) if group.section == "predictor"]
    assert [sizes[name] for name in maps] == [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    found = anchors(network, 320, 320)
    assert found.shape == (2034, 4)
    unit = np.finfo(np.float32).eps
    assert np.abs(found - recorded["anchors_center_size"]).max() <= 2 * unit
    y, x, height, width = found.T
    corners = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    assert np.abs(corners - recorded["anchors"]).max() <= 2 * unit
    boxes = decoded(recorded["box_encodings"], found, network.head.coder)
    assert np.abs(boxes - recorded["raw_detection_boxes"]).max() < 3e-7


def test_boxes_are_tensorflows(oracle):
    """Decoded and suppressed by our graph, from the original outputs: what the original graph makes of them."""
    pytest.importorskip("onnxruntime")
    from porter.exports.runtime import boxes_session

    _, recorded = oracle
    session = boxes_session(build_network(load_variant("ssdlite_small")), (320, 320))
    for image in range(2):
        names = {"encodings": "box_encodings", "logits": "class_predictions_with_background"}
        given = {name: recorded[theirs][image][None] for name, theirs in names.items()}
        boxes, classes, scores = session.run(None, given)
        assert len(boxes) == recorded["nms/num_detections"][image]
        assert np.array_equal(classes - 1, recorded["nms/detection_classes"][image])
        assert np.abs(boxes - recorded["nms/detection_boxes"][image]).max() < 3e-7
        assert np.abs(scores - recorded["nms/detection_scores"][image]).max() < 1e-6


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


@pytest.mark.slow
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
    ran = run("verify", made, path, "--size", "97x65", "--deploy")
    assert ran.code == 0, ran.out + ran.err
    folded = tmp_path / "folded.pth"
    assert run("convert", made, "--fold-bn", "-o", folded).code == 0
    ran = run("verify", made, folded, "--size", "97x65")
    assert ran.code == 0, ran.out + ran.err


@pytest.mark.slow  # test_ssd_graph.py has an oracle for them that is not of our table
@pytest.mark.tensorflow
@pytest.mark.parametrize("variant", [name for name in list_with_head("detection") if name != "ssdlite_small"])
def test_other_tables(tf, tmp_path_factory, tmp_path, run, variant):
    """Large, minimalistic, EdgeTPU: found from the shapes, and every endpoint is that of our graph in tf.nn."""
    source = checkpoint_with_head(variant, tmp_path_factory)
    ran = run("convert", source, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert f"variant   {variant} (found from the shapes)" in ran.out
    ran = run("verify", source, tmp_path / "a.pth", "--size", "65x48", "--dtype", "float64")
    assert ran.code == 0, ran.out + ran.err
    assert "no output" not in ran.out


@pytest.mark.parametrize("name", list_with_head("detection"))
def test_every_table(name):
    """As many predictions as anchors; the large network's first map is that of its 14th layer."""
    model = porter.create_model(name, num_classes=4)
    with torch.no_grad():
        encodings, logits = model(torch.zeros(1, 3, 128, 96))
    count = len(anchors(model.network, 128, 96))
    assert encodings.shape == (1, count, 4)
    assert logits.shape == (1, count, 4)


@pytest.fixture
def photographed(made, run, tmp_path):
    """(artifact, folder of one photo, the best box in it)."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(2)
    image.fromarray(random.integers(0, 255, (200, 300, 3), np.uint8)).save(photos / "one.png")
    assert run("convert", made, "-o", tmp_path / "a.pth").code == 0
    ran = run("predict", tmp_path / "a.pth", photos, "--least", "0", "--json")
    check_json(json.loads(ran.out), "predict")
    boxes = json.loads(ran.out)["boxes"]
    assert 1 <= len(boxes) <= 100
    assert all(0 <= box["top"] <= box["bottom"] <= 1 and 1 <= box["number"] <= 5 for box in boxes)
    assert [box["score"] for box in boxes] == sorted((box["score"] for box in boxes), reverse=True)
    return tmp_path / "a.pth", photos, boxes[0]


def annotations(best, shift=0, **changes):
    """COCO's annotations of the photo, with the box ``best``, ``shift`` pixels to the right."""
    left, top = best["left"] * 300 + shift, best["top"] * 200
    wide, tall = (best["right"] - best["left"]) * 300, (best["bottom"] - best["top"]) * 200
    box = {"id": 0, "image_id": 7, "category_id": best["number"], "bbox": [left, top, wide, tall], "iscrowd": 0}
    return {
        "info": {"year": 2026},
        "images": [{"id": 7, "file_name": "one.png", "height": 200, "width": 300}],
        "annotations": [box | {"area": wide * tall, "segmentation": [[1, 2]]}],
        "categories": [{"id": number, "name": f"<b>thing {number}"} for number in range(1, 6)],
    } | changes


def test_mean_average_precision(photographed, run, tmp_path):
    """What the detector itself finds, given as the truth, is found; boxes elsewhere are not."""
    path, photos, best = photographed
    file, number = tmp_path / "truth.json", best["number"]
    file.write_text(json.dumps(annotations(best)))
    page, table = tmp_path / "page.html", tmp_path / "classes.csv"
    ran = run("evaluate", path, photos, "--labels", file, "--html", page, "--per-class", table)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [
        f"{path}: mAP 100.00%, AP50 100.00%, AP75 100.00%, 1 image",
        f"  100.00%     {number}  <b>thing {number}",
    ]
    head, row = table.read_text().splitlines()
    assert (head, row.rpartition(",")[0]) == ("class,name,ap", f"{number},<b>thing {number}")
    assert float(row.rpartition(",")[2]) == pytest.approx(1)
    text = page.read_text()
    assert f'{number}</td><td>&lt;b&gt;thing {number}</td><td class="number">100.00 %' in text
    for name in ("mAP", "AP50", "AP75"):
        assert f"<dt>{name}</dt><dd>100.00 %</dd>" in text
    assert "<b>" not in text
    wide = (best["right"] - best["left"]) * 300
    file.write_text(json.dumps(annotations(best, shift=wide * 0.2)))  # they overlap by two thirds
    found = json.loads(run("evaluate", path, photos, "--labels", file, "--json").out)
    check_json(found, "evaluate_scores")
    assert found["ap50"] > found["map"] > found["ap75"]
    assert found["ap"] == {str(number): found["map"]}
    (tmp_path / "names.txt").write_text("none\none\ntwo\nthree\nfour\nfive\n")
    file.write_text(json.dumps(annotations(best, shift=10_000)))
    ran = run("evaluate", path, photos, "--labels", file, "--class-names", tmp_path / "names.txt")
    assert "mAP 0.00%, AP50 0.00%, AP75 0.00%" in ran.out
    assert ran.out.endswith(f"{number}  {['none', 'one', 'two', 'three', 'four', 'five'][number]}\n")


def test_unreadable_photos_of_boxes(photographed, run, tmp_path):
    """They and their boxes do not count."""
    path, photos, best = photographed
    truth = annotations(best)
    truth["images"].append({"id": 3, "file_name": "bad.jpg", "height": 200, "width": 300})
    truth["annotations"].append(truth["annotations"][0] | {"image_id": 3})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (photos / "bad.jpg").write_bytes(b"no image")
    ran = run("evaluate", path, photos, "--labels", tmp_path / "truth.json")
    assert (ran.code, "bad.jpg: not a readable image" in ran.err) == (2, True)
    skip = ("--labels", tmp_path / "truth.json", "--skip-unreadable", "--json")
    found = json.loads(run("evaluate", path, photos, *skip).out)
    assert (found["map"], found["images"], found["skipped"]) == (pytest.approx(1), 1, [str(photos / "bad.jpg")])
    (photos / "one.png").write_bytes(b"no image")
    ran = run("evaluate", path, photos, *skip)
    assert (ran.code, "none of its 2 images could be read" in ran.err) == (2, True)


BOX = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]}
IMAGE = {"id": 7, "file_name": "one.png", "height": 200, "width": 300}
HOSTILE = {
    "not COCO's JSON of boxes": (
        *("", "{", "[]", '{"images": [1]}', "[" * 100_000, b"\xff\xfe"),
        *({"images": [IMAGE | {"id": value}]} for value in ("7", None, [], {}, -1, 1.5, 10**400, True)),
        *({"images": [IMAGE | {"file_name": value}]} for value in (None, 7, ["one.png"], "\ud800")),
        *({"images": [IMAGE | {"width": value}]} for value in (0, -5, 10**12)),
        *({"annotations": [BOX | {"bbox": value}]} for value in ([], [0, 0, 1], [0, 0, -1, 5], ["0"] * 4, None)),
        *({"annotations": [BOX | {"area": value}]} for value in (-1, "big")),
        *({"categories": [{"id": 1, "name": value}]} for value in (None, 5, [])),
        json.dumps({"images": [IMAGE], "annotations": [BOX], "categories": []}).replace("9]", "1e999]"),
    ),
    "no such image in": tuple(
        {"images": [IMAGE | {"file_name": name}]} for name in ("../truth.json", "", "/etc/passwd")
    ),
    "\\x00: no such image in": ({"images": [IMAGE | {"file_name": "a\0"}]},),
    "\\x1b[2J\\nError: no such image in": ({"images": [IMAGE | {"file_name": "\x1b[2J\nError"}]},),
    "File name too long": ({"images": [IMAGE | {"file_name": "a" * 5000}]},),
    "lists no images": ({"images": []},),
    "lists an image twice": ({"images": [IMAGE, IMAGE | {"id": 8}]},),
    "have one id": ({"images": [IMAGE, IMAGE]}, {"categories": [{"id": 1}, {"id": 1}]}),
    "which the file does not list": ({"annotations": [BOX | {"image_id": 6}]}, {"categories": []}),
    "class 6; ": ({"annotations": [BOX | {"category_id": 6}], "categories": [{"id": 6}]},),
    "class 0; ": ({"annotations": [BOX | {"category_id": 0}], "categories": [{"id": 0}]},),
    "no box that counts": ({"annotations": []}, {"annotations": [BOX | {"iscrowd": 1}]}),
}


@pytest.mark.slow
def test_hostile_annotations(photographed, run, tmp_path, monkeypatch):
    """One line and exit code 2, whatever stands where an id or a name should."""
    path, photos, best = photographed
    file = tmp_path / "truth.json"
    for message, contents in HOSTILE.items():
        for content in contents:
            if isinstance(content, dict):
                content = json.dumps(annotations(best) | {"annotations": [BOX]} | content)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            ran = run("evaluate", path, photos, "--labels", file)
            assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), (content[:200], ran)
            assert message in ran.err, (content[:200], ran.err)
    file.write_text(json.dumps(annotations(best)))
    monkeypatch.setattr("porter.evaluation.boxes.MAX_FILE", 100)
    assert "COCO's largest file of boxes has fewer" in run("evaluate", path, photos, "--labels", file).err
    for options in ((), ("--labels", photos)):
        ran = run("evaluate", path, photos, *options)
        assert ran.err == f"Error: {path}: a detector needs COCO's JSON of the images' boxes; use --labels JSON\n"


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
    assert "predict . photo.jpg -o boxes/" in card


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("port", "code", "said"),
    [
        pytest.param("own", 0, "same function", marks=pytest.mark.slow),
        ("boxes_and_scores", 0, "same function"),
        ("boxes_in_another_order", 1, "its encodings with the boxes in another order"),
        pytest.param("x_before_y", 1, "its encodings in another order", marks=pytest.mark.slow),
        pytest.param("softmax_of_boxes", 1, "the softmax of its logits", marks=pytest.mark.slow),
    ],
)
def test_a_detector_as_a_module(made, tf, verify_head, port, code, said):
    """Tuples and dicts of encodings or boxes, and of logits or scores."""
    ran = verify_head("ssdlite_small", made, port)
    assert (ran.code, said in ran.out) == (code, True), ran.out + ran.err
