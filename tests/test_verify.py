"""Parity on all six, and that the verifier notices what it is there to notice."""

import importlib.util
import json
import re
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import FOLDERS, PORTED, SOME
from json_schemas import check_json

import porter
from porter.artifacts.artifact import load_artifact, save_artifact
from porter.errors import PorterError
from porter.exports.convert import convert
from porter.mapping.files import list_variants, load_variant
from porter.mapping.options import PortOptions
from porter.network.network import GATE_ENTRY
from porter.parity.candidates.candidate import Output
from porter.parity.check import check_sample
from porter.parity.compare import compare
from porter.parity.references.reference import Noise, Values
from porter.parity.verify import Against, open_check
from porter.parity.weight_causes import _moved
from porter.port import plan_port

TENSORFLOW = pytest.mark.tensorflow


def worst(verdict):
    return max(row.function for row in verdict.rows)


@pytest.mark.parametrize(("variant", "layout", "keep_background"), PORTED)
def test_recorded_outputs_of_the_original_graph(shared, variant, layout, keep_background):
    """An old record, of float32 alone: logits within 1e-5, every endpoint within 2e-5; no TensorFlow involved."""
    folder = shared / FOLDERS[variant]
    reference = str(folder / "expected.npz")
    verdict = porter.verify(folder, reference=reference, layout=layout, keep_background=keep_background)
    assert verdict.passed
    assert verdict.variant == variant
    assert len(verdict.worst_rows()) == (66 if "large" in variant else 50)
    assert (verdict.top1_agree, verdict.top5_agree, verdict.images) == (2, 2, 2)


WHOLE = pytest.param(None, marks=pytest.mark.slow)  # at the size it was trained on, and what else is the default


@TENSORFLOW
@pytest.mark.parametrize("size", [(75, 97), pytest.param((224, 224), marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", SOME)
def test_float64_against_tf_nn(tf, shared, variant, size):
    verdict = porter.verify(shared / FOLDERS[variant], reference="tf.nn", dtype="float64", sizes=[size])
    assert verdict.passed
    assert worst(verdict) < 1e-12
    assert verdict.as_exact is None


@TENSORFLOW
@pytest.mark.parametrize(
    "sizes", [[(96, 65), (33, 64)], pytest.param([(225, 225), (160, 193)], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("variant", SOME)
def test_any_size_against_tf_nn(tf, shared, variant, sizes):
    verdict = porter.verify(shared / FOLDERS[variant], reference="tf.nn", sizes=sizes)
    assert verdict.passed


@pytest.mark.slow
@TENSORFLOW
def test_the_original_graph_runs_at_any_size(tf, shared):
    """Cut at the first convolution, and pooling over all of the map, as it does at its training size."""
    verdict = porter.verify(shared / FOLDERS["small_075"], sizes=[(64, 97)])
    assert verdict.reference.startswith("frozen graph")
    assert verdict.passed
    assert worst(verdict) < 1e-13


@TENSORFLOW
@pytest.mark.parametrize(
    "variant", ["small_075", *(pytest.param(v, marks=pytest.mark.slow) for v in ("large_100", "small_minimal_100"))]
)
@pytest.mark.parametrize("sizes", [[(96, 65)], WHOLE])
def test_frozen_graph(tf, shared, variant, sizes):
    folder = shared / FOLDERS[variant]
    for source in (folder, folder / f"{folder.name}.pb"):
        verdict = porter.verify(source, **({"sizes": sizes} if sizes else {}))
        assert verdict.reference.startswith("frozen graph")
        assert verdict.passed


@TENSORFLOW
@pytest.mark.parametrize(
    ("folder", "weights"),
    [
        ("pristine", "auto"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("ema", "auto"), ("pristine", "raw"))),
    ],
)
@pytest.mark.parametrize("sizes", [[(65, 64)], WHOLE])
def test_meta_graph(tf, shared, folder, weights, sizes):
    options = {"sizes": sizes} if sizes else {}
    verdict = porter.verify(shared / FOLDERS["small_075"] / folder, weights=weights, reference="meta", **options)
    assert verdict.reference.startswith("meta graph")
    assert verdict.passed


@TENSORFLOW
def test_raw_weights_are_not_the_frozen_graphs(tf, shared):
    """The frozen graph holds averages: raw weights must differ from it, and auto must not choose it for them."""
    folder = shared / FOLDERS["small_075"]
    assert not porter.verify(folder / "ema", reference="frozen", sizes=[(64, 65)]).first_divergence()
    automatic = porter.verify(folder / "pristine", weights="raw", sizes=[(64, 65)])
    assert automatic.reference.startswith("meta graph")
    assert automatic.passed


@TENSORFLOW
def test_photos(tf, shared, tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (60, 90), np.uint8), "L").save(tmp_path / "grey.png")
    Image.fromarray(random.integers(0, 255, (300, 200, 4), np.uint8), "CMYK").save(tmp_path / "cmyk.jpg")
    verdict = porter.verify(shared / FOLDERS["small_075"], images=tmp_path)
    assert verdict.passed
    assert verdict.images == 2
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(PorterError, match=r"broken.png: not a readable image"):
        porter.verify(shared / FOLDERS["small_075"], images=tmp_path)


def recorded(demo_folder):
    return {"reference": str(demo_folder / "expected.npz")}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_artifact(demo_folder, tmp_path, suffix):
    path, _ = convert(demo_folder, tmp_path / f"a{suffix}")
    verdict = porter.verify(demo_folder, path, **recorded(demo_folder))
    assert verdict.passed
    assert verdict.images == 1


@TENSORFLOW
def test_folded_artifact_in_float64(tf, demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    assert porter.verify(demo_folder, path, dtype="float64", sizes=[(64, 64)]).passed


def damaged(source, path, entry, **options):
    """``path``, a port of ``source`` with another tensor for ``entry``."""
    convert(source, path, **options)
    artifact = load_artifact(path)
    artifact.arrays[entry] += 0.01 * np.abs(artifact.arrays[entry]).mean()
    save_artifact(path, artifact, force=True)
    return path


@TENSORFLOW
@pytest.mark.parametrize(
    ("entry", "first"),
    [
        ("conv_stem.weight", "layer_1"),
        ("blocks.1.0.conv_dw.weight", "layer_3/depthwise_output"),
        ("blocks.1.0.se.conv_expand.bias", "layer_3/output"),
        ("blocks.1.1.bn3.running_var", "layer_4/output"),
        ("blocks.2.0.conv.weight", "layer_5"),
        ("conv_head.bias", "layer_7"),
        ("classifier.weight", "Logits"),
    ],
)
def test_a_wrong_tensor_is_found_where_it_acts(run, three_blocks, tmp_path, entry, first):
    """The first divergence is the endpoint that the tensor feeds; exit code 1."""
    path = damaged(three_blocks.source, tmp_path / "a.pth", entry, mapping=three_blocks.mapping)
    ran = run("verify", three_blocks.source, path, *three_blocks.options, "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["first_divergence"] == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "first"),
    [
        ("conv_stem.weight", "layer_1"),
        ("blocks.1.0.conv_dw.weight", "layer_3/depthwise_output"),
        ("blocks.2.1.se.conv_expand.bias", "layer_6/output"),
        ("blocks.4.2.bn3.running_var", "layer_12/output"),
        ("blocks.5.0.conv.weight", "layer_13"),
        ("conv_head.bias", "layer_15"),
        ("classifier.weight", "Logits"),
    ],
)
def test_a_wrong_tensor_of_a_whole_variant(run, demo_folder, tmp_path, entry, first):
    path = damaged(demo_folder, tmp_path / "a.pth", entry)
    ran = run("verify", demo_folder, path, "--reference", demo_folder / "expected.npz", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["first_divergence"] == first


def test_gate_of_one_sixth_without_the_fold_is_no_parity(demo_folder, tmp_path):
    """timm's definition on unfolded weights: the error this project exists to avoid."""
    path, _ = convert(demo_folder, tmp_path / "a.pth", layout="slim")
    weights = {name: value for name, value in load_artifact(path).tensors.items() if name != GATE_ENTRY}
    torch.save(weights, tmp_path / "plain.pth")
    verdict = porter.verify(demo_folder, tmp_path / "plain.pth", **recorded(demo_folder))
    assert not verdict.passed
    assert not verdict.first_divergence().endpoint.startswith("layer_1")  # the stem has no gate


@pytest.mark.slow
def test_symmetric_padding_is_no_parity(demo_folder, monkeypatch):
    from porter.models import mobilenet_v3 as module

    reach = lambda kernel, dilation: dilation * (kernel - 1) // 2  # noqa: E731
    monkeypatch.setattr(module, "same_padding", lambda size, kernel, stride, dilation: (reach(kernel, dilation),) * 2)
    verdict = porter.verify(demo_folder, **recorded(demo_folder))
    assert verdict.first_divergence().endpoint == "layer_1"


def test_nan_is_no_parity():
    values = Values(np.array([[1.0, 2.0]]), Noise(1e-7, 1e-7))
    broken = np.array([[1.0, np.nan]])
    for exact, single in ((broken, values.values), (values.values, broken), (broken, None)):
        row = compare("x", "s", values, Output(exact, single))
        assert not row.passed
        assert row.worst == (0, 1)


@pytest.mark.parametrize(
    ("count", "apart", "passes"), [(1, 40, True), (16, 9, True), (16, 12, False), (4096, 5, False)]
)
def test_few_values_vary_more(count, apart, passes):
    """The port's error is ``apart`` times the reference's: in a handful of values that is chance."""
    values = Values(np.ones((1, count)), Noise(1e-6, 1e-6))
    row = compare("x", "s", values, Output(None, np.full((1, count), 1 + apart * 1e-6)))
    assert row.as_exact is passes


@pytest.mark.parametrize(("times", "passes"), [(1, True), (100, False)])
def test_float32_error_that_a_port_knows_of_itself(times, passes):
    """Another TensorFlow source gives float64 and its own error, and no values in float32."""
    values = Values(np.full((1, 4096), 2.0), Noise(1e-6, 1e-6))
    row = compare("x", "s", values, Output(values.values, None, Noise(times * 1e-6, times * 1e-6)))
    assert row.port == Noise(times * 5e-7, times * 5e-7)
    assert (row.same_function, row.as_exact) == (True, passes)


@pytest.mark.parametrize(("noise", "limit"), [(1e-6, 1e-12), (1e-3, 2**-29 * 8e-3)])
def test_where_the_network_cancels_float64_loses_digits_too(noise, limit):
    """As many as float32 does; otherwise the limit is 1e-12."""
    values = Values(np.ones((1, 10**6)), Noise(noise, noise))
    assert compare("x", "s", values, Output(values.values, None)).function_limit == pytest.approx(limit, rel=1e-2)


def test_human_table_and_junit(run, demo_folder, tmp_path):
    junit = tmp_path / "parity.xml"
    ran = run("verify", demo_folder, "--reference", demo_folder / "expected.npz", "--junit", junit)
    assert ran.code == 0
    assert "PARITY     small_075: same function (" in ran.out
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("50", "0")
    assert [case.get("name") for case in suite.findall("testcase")][:2] == ["layer_1", "layer_2/depthwise_output"]


@pytest.mark.parametrize("changed", [False, True])
def test_json_is_as_documented(run, demo_folder, tmp_path, changed):
    path = tmp_path / "port.safetensors"
    assert run("convert", demo_folder, "-o", path).code == 0
    check_json(json.loads(run("inspect", path, "--json").out), "inspect_artifact")
    if changed:
        artifact = load_artifact(path)
        artifact.arrays["conv_stem.weight"] *= 1.01
        save_artifact(path, artifact, force=True)
    ran = run("verify", demo_folder, path, "--reference", demo_folder / "expected.npz", "--json")
    assert ran.code == changed
    check_json(json.loads(ran.out), "verify")


def test_an_error_is_in_the_reports(run, demo_folder, tmp_path):
    """Exit code 2: a CI page would show nothing otherwise."""
    junit, page = tmp_path / "parity.xml", tmp_path / "parity.md"
    for command in (["verify", demo_folder, "none.pth"], ["release", "--check", tmp_path]):
        ran = run(*command, "--junit", junit, "--markdown", page)
        assert ran.code == 2
        root = ElementTree.parse(junit).getroot()
        assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("1", "1", "0")
        said = ran.err.removeprefix("Error: ").partition("\n")[0]
        assert root.find("testcase/error").get("message").startswith(said)
        assert page.read_text().startswith("### Error\n\n")


def test_markdown(run, demo_folder, tmp_path):
    page = tmp_path / "parity.md"
    ran = run("verify", demo_folder, "--reference", demo_folder / "expected.npz", "--markdown", page)
    assert ran.code == 0
    from markdown_it import MarkdownIt

    html = MarkdownIt().enable("table").render(page.read_text())
    assert "<h3>Parity: small_075</h3>" in html
    assert html.count("<td>ok</td>") == 4


def test_a_float32_record_does_not_stand_under_float64(run, demo_folder, tmp_path):
    """Older records hold float32 values, no noise and no precision."""
    with np.load(demo_folder / "expected.npz") as file:
        old = {name: file[name] for name in ("input", "keep")}
        old |= {name: file[name].astype(np.float32) for name in file.files if name.startswith("ep/")}
    np.savez(tmp_path / "old.npz", **old)
    pages = {"--html": tmp_path / "page.html", "--junit": tmp_path / "parity.xml"}
    options = [word for pair in pages.items() for word in pair]
    ran = run("verify", demo_folder, "--reference", tmp_path / "old.npz", *options)
    assert ran.code == 0, ran.out
    for text in (ran.out, *(path.read_text() for path in pages.values())):
        assert "to record" in text
        assert not re.search(r"^endpoint.*float64|>float64<|port, float64|float64 \d", text, re.MULTILINE)


def test_junit_of_a_failure(run, demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    artifact = load_artifact(path)
    artifact.arrays["classifier.bias"] += 1
    save_artifact(path, artifact, force=True)
    junit = tmp_path / "parity.xml"
    ran = run("verify", demo_folder, path, "--reference", demo_folder / "expected.npz", "--junit", junit)
    assert ran.code == 1
    assert "NO PARITY  small_075: another function, from Logits on" in ran.out
    failed = [case.get("name") for case in ElementTree.parse(junit).getroot().findall("testcase[failure]")]
    assert failed == ["Logits", "Predictions", "classifier.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "magic"], "unknown reference 'magic'"),
        (["--reference", "none.npz"], "none.npz: not a readable .npz reference"),
        (["--reference", "frozen"], "expected one frozen .pb beside it"),
        (["--reference", "meta"], "model-1000.meta: no such file"),
        (["--reference", "RECORDED", "--size", "64"], "has its own inputs; leave out sizes and images"),
        (["--size", "64x"], "is not a size such as 224 or 160x193"),
        (["missing.pth"], "missing.pth: no such file"),
        (["--variant", "small_100"], "is a small_075 checkpoint"),
    ],
)
def test_checks_that_cannot_be_made(run, demo_folder, arguments, message):
    arguments = [str(demo_folder / "expected.npz") if a == "RECORDED" else a for a in arguments]
    ran = run("verify", demo_folder, *arguments)
    assert ran.code == 2
    assert message in ran.err


def test_damaged_recorded_reference(run, demo_folder, tmp_path):
    whole = (demo_folder / "expected.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, message in (
        ("cut.npz", "not a readable .npz"),
        ("other.npz", "needs the arrays 'input' and 'ep/<endpoint>'"),
    ):
        ran = run("verify", demo_folder, "--reference", tmp_path / name)
        assert (ran.code, message in ran.err) == (2, True)


def test_one_pair_of_endpoints_at_a_time(demo_folder):
    """When the reference is asked for an endpoint, all that it gave before is gone."""
    check = open_check(demo_folder, None, PortOptions(), Against(str(demo_folder / "expected.npz")))
    alive = []

    def run(images, names):
        for name, (values, noise) in check.reference.run(images, names):
            assert [known for known in alive if known() is not None] == []
            alive.append(weakref.ref(values))
            yield name, Values(values, noise)
            del values

    check_sample(check._replace(reference=replace(check.reference, run=run)), check.reference.samples[0])
    assert check.verdict.passed
    assert len(alive) == len(check.verdict.rows) == 50


@pytest.fixture
def no_tensorflow(monkeypatch):
    """As where it is not installed."""
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hidden)
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_without_tensorflow_the_recorded_reference_serves(no_tensorflow, run, demo_folder):
    ran = run("verify", demo_folder)
    assert ran.code == 0, ran.err
    assert "recorded (expected.npz)" in ran.out


def test_without_tensorflow_and_reference(no_tensorflow, run, demo_folder):
    ran = run("verify", demo_folder / "ema" / "model-1000", "--reference", "tf.nn")
    assert ran.code == 2
    assert "pip install 'mnv3-port[tensorflow]'" in ran.err


def test_demo_without_tensorflow(no_tensorflow, run):
    ran = run("demo")
    assert ran.code == 0, ran.err
    assert "PARITY" in ran.out


@TENSORFLOW
@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=() if v in ("small_075", "edgetpu_075") else pytest.mark.slow) for v in list_variants()],
)
def test_demo(tf, run, variant, tmp_path):
    """TensorFlow reads the demo's checkpoint and agrees, for every variant."""
    from porter.parity.demo import write_demo_checkpoint

    folder = write_demo_checkpoint(tmp_path, variant)
    assert plan_port(folder).plan.variant == variant
    reader = tf.train.load_checkpoint(str(folder / "ema"))
    assert reader.has_tensor(f"{load_variant(variant).scope}/Conv/weights")
    assert porter.verify(folder, reference="tf.nn", sizes=[(97, 64)]).passed


def test_demo_keeps_its_files(no_tensorflow, run, tmp_path):
    assert run("demo", "--out", tmp_path).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"small_075_demo", "small_075.pth"}
    assert Path(tmp_path / "small_075_demo" / "ema" / "model-1000.index").is_file()


def test_one_changed_value_is_no_factor():
    """A bias of one class would always be a multiple of what it was."""
    assert _moved(np.array([2.0]), np.array([1.0])) is None
    assert _moved(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == "times 2"
