"""Segmenters and detectors as .onnx, .tflite and deploy, with and without boxes, against their modules."""

import numpy as np
import pytest
import torch
from forms import check_files, close, module_outputs, run_onnx, run_tflite, suppressed

import porter
from porter.exports.convert import convert
from porter.mapping.files import list_with_head, load_variant
from porter.models.create import open_model
from porter.network.detection import decoded
from porter.network.node import multiply_accumulates
from porter.network.nodes import anchors, nodes
from porter.parity.demo import random_variables
from porter.sources.bundle_writer import write_bundle

CLASSES = 6
HEADS = (*list_with_head("segmentation"), *list_with_head("detection"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Variant -> a checkpoint of random weights."""

    def make(variant):
        prefix = folder / variant / "model-3"
        if not prefix.with_suffix(".index").exists():
            prefix.parent.mkdir(exist_ok=True)
            values = random_variables(load_variant(variant), CLASSES)
            for name in values:  # boxes near their anchors, and scores that differ
                values[name] *= 0.1 if name.endswith("Predictor/weights") else 1
            write_bundle(prefix, values, force=True)
        return prefix

    folder = tmp_path_factory.mktemp("heads")
    return make


def images(size, count=2):
    return np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "variant",
    [
        "lraspp_small",
        "ssdlite_small",
        *(pytest.param(v, marks=pytest.mark.slow) for v in HEADS if not v.endswith("small")),
    ],
)
def test_every_form_gives_what_the_module_gives(made, variant, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    source = made(variant)
    size = load_variant(variant).input.size
    batch, model = images(size), porter.create_model(variant, source)
    exact, tolerance = module_outputs(model, batch)
    deployed = porter.deploy(model, size)(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
    for found, want in zip(deployed if isinstance(deployed, tuple) else (deployed,), exact, strict=True):
        close(found, want, tolerance)
    files = [convert(source, tmp_path / f"a.{kind}")[0] for kind in ("onnx", "tflite")]
    check_files(*files, batch, exact, tolerance)


@pytest.mark.parametrize(
    "variant",
    [
        "ssdlite_small",
        *(pytest.param(v, marks=pytest.mark.slow) for v in list_with_head("detection") if v != "ssdlite_small"),
    ],
)
def test_boxes_in_the_graph(made, variant, tmp_path):
    """Decoded and suppressed by the graph: what decoding and suppressing the module's outputs gives."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    source, opened = made(variant), open_model(made(variant))
    size, batch, head = opened.mapping.input.size, images(320, 1), opened.model.network.head
    with torch.no_grad():
        found = opened.model(torch.from_numpy(batch).permute(0, 3, 1, 2))
    encodings, logits = (one.numpy() for one in found)
    [boxes] = decoded(encodings, anchors(opened.model.network, size, size), head.coder)
    expected = suppressed(boxes, 1 / (1 + np.exp(-logits[0, :, 1:])))
    corners = np.array([box[:4] for box in expected])
    path, _ = convert(source, tmp_path / "a.onnx", boxes=True)
    found, classes, scores = run_onnx(path, batch)
    assert len(found) == len(expected) == 100
    assert np.allclose(scores, [box.score for box in expected], atol=1e-5)
    gaps = np.abs(np.diff(scores, prepend=2, append=-1)) > 1e-6
    settled = gaps[1:] & gaps[:-1]  # boxes of equal scores may change places
    assert settled.sum() > 20
    assert np.array_equal(np.array([box.number for box in expected])[settled], classes[settled])
    assert np.allclose(found[settled], corners[settled], atol=1e-4)
    path, _ = convert(source, tmp_path / "a.tflite", boxes=True)
    lite_boxes, lite_classes, lite_scores, number = run_tflite(path, batch)
    assert number.tolist() == [100]
    assert np.allclose(lite_scores[0], scores, atol=1e-5)
    assert np.array_equal(lite_classes[0][settled] + 1, classes[settled])
    assert np.allclose(np.clip(lite_boxes[0], 0, 1)[settled], found[settled], atol=1e-4)


def test_boxes_are_of_detectors(made, tmp_path, run):
    for kind, variant, option in (("classifier", None, "small_075"), ("segmenter", "lraspp_small", None)):
        source = made(variant) if variant else made(option)
        ran = run("convert", source, "--boxes", "-o", tmp_path / "a.onnx")
        assert ran.code == 2, kind
        assert "is no detector; leave boxes out" in ran.err
    ran = run("convert", made("ssdlite_small"), "--boxes", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "boxes: " in ran.err


@pytest.mark.parametrize(("variant", "counted"), [("lraspp_large", 3_723_651_200)])
def test_multiply_accumulates_of_a_head(variant, counted):
    """Of large LR-ASPP at 1024 pixels and 19 classes, as counted in the module."""
    from porter.network.network import build_network

    network = build_network(load_variant(variant))
    assert multiply_accumulates(nodes(network, 19), (1024, 1024)) == counted


@pytest.mark.parametrize("variant", HEADS)
def test_multiply_accumulates_are_the_modules(variant):
    model = porter.create_model(variant, num_classes=CLASSES)
    total = 0

    def count(module, _args, out):
        nonlocal total
        total += module.weight[0].numel() * out[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 257, 257))
    assert multiply_accumulates(nodes(model.network, CLASSES), (257, 257)) == total


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("variant", ["lraspp_small", "ssdlite_small"])
def test_release_with_other_forms(made, variant, tmp_path, run, tf):
    """What is published besides the weights is compared with the record, as a classifier's is."""
    ran = run("release", made(variant), "--out", tmp_path / "out", "--onnx", "--tflite")
    assert ran.code == 0, ran.out + ran.err
    assert {"onnx", "tflite"} <= set(ran.out.split())
    assert {path.suffix for path in (tmp_path / "out").iterdir()} >= {".onnx", ".tflite", ".pth", ".safetensors"}
    assert run("release", "--check", tmp_path / "out").code == 0
    ran = run("release", made(variant), "--out", tmp_path / "other", "--torchscript")
    assert ran.code == 2
    assert "can only be exported to onnx and tflite" in ran.err
    assert not (tmp_path / "other").exists()
