"""Ports that are not ours: their verdicts, where they first differ by both names, and why."""

import json
import re
from pathlib import Path

import functional_port
import numpy as np
import pytest
import torch
from three_blocks import Subject

import porter
from porter.artifacts.artifact import load_artifact, save_artifact
from porter.exports.convert import convert

PORTS = Path(__file__).parent / "ports.py"
FOREIGN = PORTS.with_name("functional_port.py")


@pytest.fixture(params=["three_blocks", pytest.param("small_075", marks=pytest.mark.slow)])
def subject(request, monkeypatch):
    """What is ported: three blocks, and in the slow suite a whole variant. Ports find it in the environment."""
    if request.param == "small_075":
        folder = request.getfixturevalue("demo_folder")
        found = Subject(request.param, folder, None, folder / "expected.npz", 224)
    else:
        found = request.getfixturevalue(request.param)
    for name, value in (("VARIANT", found.variant), ("SOURCE", found.source), ("SIDE", found.side)):
        monkeypatch.setenv(name, str(value))
    if found.mapping:
        monkeypatch.setenv("MAPPING", str(found.mapping))
    else:
        monkeypatch.delenv("MAPPING", raising=False)
    return found


@pytest.fixture
def demo(demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "demo.pth")
    return path


def verified(run, subject, port, *options):
    port = f"{PORTS}:{port}" if port.isidentifier() else port
    options = options or ("--reference", subject.recorded)
    return run("verify", subject.source, port, *subject.own, "--diagnose", "all", *options)


PAIRS = ("two_at_once", "gate_first")  # for these all pairs of mistakes are tried, and triples
CAUSES = {
    "bgr": "BGR",
    "zero_to_one": "input in [0, 1]",
    "bytes_in": "input in 0..255",
    "imagenet_mean": "ImageNet mean and std",
    "takes_bytes": "input taken for 0..255 and rescaled",
    "swish": "h-swish as swish",
    "hard_swish_inside": "h-swish inside squeeze-excite",
    "sigmoid_gate": "sigmoid as squeeze-excite gate",
    "gate_of_a_sixth": "squeeze-excite gate of 1/6",
    "small_epsilon": "batch norm epsilon 1e-5",
    "symmetric_padding": "symmetric padding",
    "exchanged_kernels": "kernels with height and width exchanged",
    "half_weights": "weights rounded to float16",
    "PooledLast": "pooling behind the head convolution",
    "Shifted": "classes shifted by one",
    "gate_first": "squeeze-excite before the activation",
    "gate_first_in_slim": "squeeze-excite before the activation",
    "activation_behind": "an activation behind squeeze-excite",
    "resizes": "bilinear resize with antialiasing",
    "two_at_once": "input in [0, 1] and BGR",
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("port", [pytest.param(p, marks=pytest.mark.slow if p in PAIRS else ()) for p in CAUSES])
def test_the_cause_is_named(run, subject, port):
    ran = verified(run, subject, port)
    assert ran.code == 1, ran.err
    found = re.search(r"cause +(.*): (with it, the logits' difference is (\S+), without (\S+)|.*weight)", ran.out)
    assert found, ran.out[-600:]
    enlarged = subject.variant == "small_075" and port == "resizes"  # where antialiasing changes nothing
    assert found[1] == ("bilinear resize" if enlarged else CAUSES[port])
    assert found[3] is None or float(found[3]) < 1e-6 < float(found[4])


@pytest.fixture
def foreign(run, three_blocks, monkeypatch):
    """``verify`` of a port in tests/functional_port.py."""
    for name, value in (("VARIANT", three_blocks.variant), ("SOURCE", three_blocks.source)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MAPPING", str(three_blocks.mapping))
    monkeypatch.syspath_prepend(str(FOREIGN.parent))

    def verify(port, *options):
        options = options or ("--reference", three_blocks.recorded)
        return run("verify", three_blocks.source, f"{FOREIGN}:{port}", *three_blocks.own, *options)

    return verify


@pytest.mark.parametrize("port", [*functional_port.RIGHT, "embedding", "scripted", "exported"])
def test_a_right_port_in_functions(foreign, port):
    """Nothing in it is a module, but every layer is found, and what it returns is counted."""
    ran = foreign(port)
    assert ran.code == 0, ran.out + ran.err
    assert "layer_" not in ran.out.partition("not matched")[2]
    assert "top-1 1/1" in ran.out or port == "embedding"


@pytest.mark.parametrize("port", functional_port.WRONG)
def test_what_is_returned_decides(foreign, port):
    ran = foreign(port)
    assert ran.code == 1, ran.out + ran.err
    assert functional_port.WRONG[port][1] in ran.out
    assert "cause" not in ran.out or port == "clamped"
    assert "\nfurthest beyond their limits" in ran.out


@pytest.mark.parametrize(
    ("port", "code", "said"),
    [
        ("rolled_embedding", 1, "what it returns is its layer_7 rolled by 5"),
        ("normalised_embedding", 1, "what it returns is its layer_7 divided by their length"),
        ("few_classes", 2, "returns its output [1, 7], which no output of the source's network fits"),
        ("half", 1, "its output is float16 for images in float32"),
        ("Autocast", 1, "its output is bfloat16 for images in float32"),
        ("Trains", 1, "in training mode in spite of eval(): itself"),
        ("Trains", 1, "not deterministic"),
        ("Mutates", 1, "it changes the images that it is given"),
        ("Single", 0, "not compared in float64"),
        ("Exits", 2, "does not run on 1x3x51x40 float32 (SystemExit: 3)"),
        ("exits", 2, "SystemExit: 3"),
    ],
)
def test_odd_runs_are_named(foreign, port, code, said):
    ran = foreign(port)
    assert (ran.code, said in ran.out + ran.err) == (code, True), ran.out + ran.err


def test_a_diagnosis_says_what_it_did_not_try(foreign):
    ran = foreign("OneSwish")
    assert ran.code == 1
    assert "single mistakes and all combinations: --diagnose all" in ran.out


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_setting_that_makes_float32_less_exact(foreign, precision):
    """It is named only where it is set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        ran = foreign("Autocast", "--reference", "tf.nn", "--size", "33")
    finally:
        torch.set_float32_matmul_precision(before)
    assert ran.code == 1
    assert "same function" in ran.out
    assert ("torch.set_float32_matmul_precision is 'medium'" in ran.out) == (precision == "medium")


def test_the_first_layer_that_differs(foreign):
    """The last endpoint that matches by value, and what comes behind it; later ones are not matched, not different."""
    found = json.loads(foreign("OneSwish", "--reference", "tf.nn", "--size", "51x40", "--json").out)
    assert found["first_divergence"] == "layer_4/expansion_output"
    assert "layer_4/output" in found["unmatched"]
    assert {row["endpoint"] for row in found["rows"] if row["passed"]} >= {"layer_1", "layer_3/output"}


def _classes_shifted(three_blocks, tensors):
    whole = porter.create_model(
        three_blocks.variant, three_blocks.source, mapping=three_blocks.mapping, keep_background=True
    ).state_dict()
    return tensors | {name: whole[name][:-1] for name in ("classifier.weight", "classifier.bias")}


DAMAGES = {
    "weights rounded to bfloat16": lambda _, t: {n: v.bfloat16() if v.ndim else v for n, v in t.items()},
    "weights rounded to float16": lambda _, t: {n: v.half() if v.ndim else v for n, v in t.items()},
    "BGR: the first convolution's input channels are reversed": lambda _, t: (
        t | {"conv_stem.weight": t["conv_stem.weight"].flip(1)}
    ),
    "classes shifted by one": _classes_shifted,
    "kernels flipped, left and right": lambda _, t: (
        t | {"blocks.1.0.conv_dw.weight": t["blocks.1.0.conv_dw.weight"].flip(3)}
    ),
    "weights times 0.5": lambda _, t: t | {"conv_head.weight": t["conv_head.weight"] * 0.5},
    "outputs in another order": lambda _, t: t | {"conv_head.bias": t["conv_head.bias"].flip(0)},
    "outputs in another order, times -1.5": lambda _, t: t | {"conv_head.weight": t["conv_head.weight"].flip(0) * -1.5},
    "BGR: the first convolution's input channels are reversed, rounded to bfloat16": lambda _, t: (
        t | {"conv_stem.weight": t["conv_stem.weight"].flip(1).bfloat16()}
    ),
}


@pytest.mark.parametrize("cause", DAMAGES)
def test_the_weights_tell_the_cause(run, three_blocks, tmp_path, cause):
    """Of few tensors and of many, in the layout in which they are stored, and without a run."""
    model = porter.create_model(three_blocks.variant, three_blocks.source, mapping=three_blocks.mapping)
    torch.save(DAMAGES[cause](three_blocks, dict(model.state_dict())), tmp_path / "a.pth")
    ran = run("verify", three_blocks.source, tmp_path / "a.pth", *three_blocks.options)
    assert ran.code == 1, ran.out + ran.err
    assert f"cause      {cause}: " in ran.out
    assert ran.out.count("cause") == 1


@pytest.mark.tensorflow
def test_another_checkpoints_weights(run, tf, tmp_path):
    """Of a step that lies beside the checkpoint, though one variable of it is a multiple; and in BGR."""
    from three_blocks import MAPPING

    from porter.mapping.files import load_mapping
    from porter.parity.demo import random_variables
    from porter.sources.bundle_writer import write_bundle

    (tmp_path / "three.yaml").write_text(MAPPING)
    steps = [random_variables(load_mapping(tmp_path / "three.yaml"), seed=step) for step in (1, 2)]
    name = "MobilenetV3/Conv/BatchNorm/moving_variance"
    steps[0][name] = steps[1][name] * np.float32(1.03)
    for number, variables in enumerate(steps, 1):
        write_bundle(tmp_path / f"model-{number}", variables)
    options = ("--mapping", tmp_path / "three.yaml")
    assert run("convert", tmp_path / "model-1", *options, "-o", tmp_path / "a.pth").code == 0
    ran = run("verify", tmp_path / "model-2", tmp_path / "a.pth", *options, "--size", "48")
    assert ran.code == 1, ran.out + ran.err
    assert "cause      the weights of another checkpoint, model-1: " in ran.out
    assert ran.out.count("cause") == 1
    tensors = load_artifact(tmp_path / "a.pth").tensors
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"].flip(1)
    torch.save(tensors, tmp_path / "b.pth")
    ran = run("verify", tmp_path / "model-2", tmp_path / "b.pth", *options, "--size", "48")
    assert "cause      the weights of another checkpoint, model-1, BGR: " in ran.out
    assert ran.out.count("cause") == 2


class Rows(torch.nn.Module):
    """Logits laid out anew for the batch that it was exported with."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).reshape(x.shape[0], -1)


def test_a_tflite_of_a_network_of_ones_own(run, three_blocks, tmp_path):
    """The mapping of the source tells the network, and the file has the names of its own format."""
    pytest.importorskip("ai_edge_litert.interpreter")
    path, _ = convert(three_blocks.source, tmp_path / "a.tflite", mapping=three_blocks.mapping)
    ran = run("verify", three_blocks.source, path, *three_blocks.own, "--reference", "tf.nn")
    assert ran.code == 0, ran.out + ran.err
    assert "float32 as exact as TensorFlow's" in ran.out
    ran = run("verify", path, *three_blocks.own)
    assert ran.code == 0, ran.out + ran.err


def test_a_program_that_returns_something_else(run, three_blocks, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from porter.exports.files import export_bytes
    from porter.mapping.options import PortOptions
    from porter.models.create import open_model

    path, _ = convert(three_blocks.source, tmp_path / "a.pth", mapping=three_blocks.mapping)
    network = open_model(path, PortOptions(mapping=three_blocks.mapping)).whole.network
    model = onnx.load_from_string(export_bytes(".onnx", network, load_artifact(path), (48, 48)))
    model.graph.node.append(onnx.helper.make_node("LogSoftmax", ["logits"], ["changed"], axis=1))
    model.graph.output[0].name = "changed"
    onnx.save(model, tmp_path / "a.onnx")
    options = (*three_blocks.own, "--reference", "tf.nn", "--size", "48")
    ran = run("verify", three_blocks.source, tmp_path / "a.onnx", *options)
    assert ran.code == 1, ran.out + ran.err
    assert "the network is right; what it returns is the log-softmax of its logits" in ran.out
    batch = torch.zeros(2, 3, 48, 48)
    torch.export.save(
        torch.export.export(Rows(open_model(path, PortOptions(mapping=three_blocks.mapping)).whole), (batch,)),
        tmp_path / "a.pt2",
    )
    ran = run("verify", three_blocks.source, tmp_path / "a.pt2", *options)
    assert ran.code == 0, ran.out + ran.err  # an image fills its batch of 2


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("port", ["nobody_knows", "one_weight"])
def test_none_is_named_where_it_is_not_the_cause(run, subject, port):
    ran = verified(run, subject, port)
    assert ran.code == 1
    assert "NO PARITY" in ran.out
    assert "cause" not in ran.out


@pytest.mark.tensorflow
@pytest.mark.parametrize("port", ["plain", "slim_layout"])
def test_no_mistake(run, subject, port):
    ran = verified(run, subject, port)
    assert ran.code == 0, ran.out
    assert "same function (" in ran.out
    assert "rounding of its weights" not in ran.out  # they are the source's


@pytest.mark.slow
@pytest.mark.tensorflow
def test_raw_weights_are_named(run, tf, tmp_path):
    from porter.parity.demo import demo_variables
    from porter.sources.bundle_writer import write_bundle

    averages = demo_variables("small_075")
    del averages["global_step"]
    raw = demo_variables("small_075", seed=1)
    both = raw | {f"{name}/ExponentialMovingAverage": values for name, values in averages.items()}
    write_bundle(tmp_path / "model-1", both)
    convert(tmp_path / "model-1", tmp_path / "raw.pth", weights="raw")
    ran = run("verify", tmp_path / "model-1", tmp_path / "raw.pth", "--size", "64")
    assert ran.code == 1
    assert "cause      raw weights instead of their averages: " in ran.out
    assert "with it, the logits' difference" not in ran.out  # the weights tell it, without a run


def test_raw_weights_are_named_in_a_network_of_ones_own(run, foreign, three_blocks, tmp_path, monkeypatch):
    """No weight has a name of ours, so the network is run with the raw ones, which its mapping file finds."""
    from porter.mapping.files import load_mapping
    from porter.parity.demo import random_variables
    from porter.sources import open_checkpoint
    from porter.sources.bundle_writer import write_bundle

    raw = random_variables(load_mapping(three_blocks.mapping), seed=1)
    averages = {
        f"{name}/ExponentialMovingAverage": one.read() for name, one in open_checkpoint(three_blocks.source).items()
    }
    write_bundle(tmp_path / "raw-3", raw)
    write_bundle(tmp_path / "model-3", raw | averages)
    monkeypatch.setenv("SOURCE", str(tmp_path / "raw-3"))
    ran = run("verify", tmp_path / "model-3", f"{FOREIGN}:logits", *three_blocks.options, "--diagnose", "all")
    assert ran.code == 1, ran.err
    assert "cause      raw weights instead of their averages: with it, the logits' difference" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["small_075"], indirect=True)
def test_timms_other_class_has_two_mistakes(run, subject, timm):
    ran = verified(run, subject, "timms_other_class")
    assert ran.code == 1
    assert "symmetric padding and batch norm epsilon 1e-5" in ran.out


def test_timm_by_name_with_our_weights_and_plain_ones(run, demo_folder, demo, tmp_path, timm):
    options = ["--reference", demo_folder / "expected.npz"]
    ran = run("verify", demo_folder, "timm:tf_mobilenetv3_small_075", "--weights-file", demo, *options)
    assert ran.code == 0, ran.out
    assert "same function (" in ran.out
    slim, _ = convert(demo_folder, tmp_path / "slim.pth", layout="slim")
    command = ("verify", demo_folder, "timm:tf_mobilenetv3_small_075", "--weights-file", slim, *options)
    ran = run(*command)
    assert ran.code == 2
    assert "squeeze_excite_gate_is_not_one_sixth" in ran.err
    torch.save({name: v for name, v in load_artifact(slim).tensors.items() if not name.startswith("squeeze")}, slim)
    ran = run(*command, "--diagnose", "all")
    assert ran.code == 1
    assert "cause      squeeze-excite gate of 1/6" in ran.out
    # The first block has the first gate: both sides' names for where it shows
    assert "first      layer_2/output = blocks.0" in ran.out


@pytest.mark.tensorflow
def test_first_difference_by_both_names(run, tf, subject):
    """In float32 and float64, against the live graph, and in JSON."""
    ran = verified(run, subject, "swish", "--reference", "tf.nn", "--size", "65x64", "--json")
    found = json.loads(ran.out)
    assert ran.code == 1
    assert found["first_divergence"] == "layer_1"
    row = next(row for row in found["rows"] if row["endpoint"] == "layer_1")
    assert row["port_name"] == "net.act1"
    assert [cause["names"] for cause in found["causes"]] == [["h-swish as swish"]]


def test_port_of_other_classes(run, demo_folder, tmp_path):
    model = porter.create_model("small_075", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    ran = run("verify", demo_folder, tmp_path / "seven.pth", "--reference", demo_folder / "expected.npz")
    assert ran.code == 2
    assert "is not a port of the checkpoint" in ran.err
    assert "classifier.weight: shape [7, 1024]" in ran.err


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("no_module", "gives int, not an nn.Module"),
        ("raises", "RuntimeError: somebody's code failed"),
        ("nothing_of_that_name", "has no attribute 'nothing_of_that_name'"),
        ("no.such.package:thing", "No module named 'no'"),
        ("timm:no_such_model", "timm cannot make it"),
        ("missing.onnx", "missing.onnx"),
        ("missing.pt2", "missing.pt2"),
        ("missing.pth", "missing.pth: no such file"),
        ("missing/folder", "missing/folder: no such file or folder"),
    ],
)
@pytest.mark.tensorflow
def test_ports_that_cannot_be_opened(run, subject, port, message, timm):
    ran = verified(run, subject, port)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_code_runs_only_where_it_is_named(run, demo_folder, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(): pass\n")
    ran = run("verify", demo_folder, tmp_path / "evil.py", "--reference", demo_folder / "expected.npz")
    assert ran.code == 2
    assert not (tmp_path / "ran").exists()
    run("verify", demo_folder, f"{tmp_path / 'evil.py'}:make", "--reference", demo_folder / "expected.npz")
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_exported_files(run, tf, demo_folder, tmp_path):
    """ONNX and torch.export answer the second question alone, at the logits."""
    ran = run("release", demo_folder, "--out", tmp_path / "dist", "--onnx", "--pt2")
    assert ran.code == 0, ran.err
    for suffix in ("onnx", "pt2"):
        [path] = (tmp_path / "dist").glob(f"*.{suffix}")
        ran = run("verify", demo_folder, path, "--reference", "tf.nn")
        assert ran.code == 0, ran.out + ran.err
        assert "float32 as exact as TensorFlow's" in ran.out
        assert "same function" not in ran.out
        ran = run("verify", demo_folder, path, "--reference", "tf.nn", "--dtype", "float64")
        assert ran.code == 2
        assert "nothing to ask" in ran.err


@pytest.mark.slow
@pytest.mark.tensorflow
def test_another_tensorflow_source(run, tf, demo_folder, tmp_path):
    """A frozen graph beside the checkpoint it was made of, and beside one of other weights."""
    from slim_graph import frozen

    from porter.parity.demo import demo_variables

    for seed, code in ((0, 0), (1, 1)):
        graph = frozen(tf, demo_variables("small_075", seed=seed))
        (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
        ran = run("verify", demo_folder, tmp_path / "g.pb", "--reference", "tf.nn", "--size", "64x97")
        assert ran.code == code, ran.out
        if seed == 0:
            assert "same function (" in ran.out
            assert "float32 as exact as TensorFlow's" in ran.out


def test_a_weight_that_no_image_reaches(run, demo_folder, demo, tmp_path):
    """Its value is compared as well."""
    tensors = load_artifact(demo).tensors
    tensors["blocks.0.0.se.conv_reduce.bias"][3] *= 1.001
    torch.save(tensors, tmp_path / "a.pth")
    ran = run("verify", demo_folder, tmp_path / "a.pth", "--reference", demo_folder / "expected.npz", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["changed"] == ["blocks.0.0.se.conv_reduce.bias"]


def test_weights_one_rounding_away_are_the_same(run, demo_folder, tmp_path):
    """Folding rounds once more; what that is off by is float32's, not another function."""
    path, _ = convert(demo_folder, tmp_path / "a.pth", layout="slim", force=True)
    artifact = load_artifact(path)
    for values in artifact.arrays.values():
        if values.dtype.kind == "f" and values.ndim:  # not the gate
            values[:] = np.nextafter(values, np.float32(np.inf))
    save_artifact(path, artifact, force=True)
    ran = run("verify", demo_folder, path, "--reference", demo_folder / "expected.npz")
    assert ran.code == 0, ran.out
    assert "same function (" in ran.out
