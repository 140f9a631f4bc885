"""The original graph as reference: rewritten in float64, cut at the first convolution, whole or in part."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from slim_graph import frozen

import porter
from porter.errors import ParityError
from porter.mapping.files import load_mapping, load_variant
from porter.mapping.options import PortOptions
from porter.parity.demo import demo_variables, random_variables
from porter.parity.references.graph_float64 import as_written, in_float64
from porter.parity.references.reference import as_pixels, check_preprocessing
from porter.port import plan_port

pytestmark = pytest.mark.tensorflow
SEGMENTATION = Path(__file__).parent / "data" / "lraspp_small.yaml"


@given(st.integers(1, 99_999), st.integers(0, 8))
def test_a_decimal_of_code_comes_back(digits, places):
    value = float(f"{digits}e-{places}")
    assert as_written(np.float32(value)) == pytest.approx(value, rel=1e-15)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_fraction_of_code_comes_back(numerator, denominator):
    assert as_written(np.float32(numerator / denominator)) == numerator / denominator


@pytest.mark.parametrize("value", [0.16667, 1 / 6, 3.0, 6.0, 1e-3, 1.001e-5, 127.5])
def test_constants_that_these_networks_have(value):
    assert as_written(np.float32(value)) == pytest.approx(value, rel=1e-15)


def write(folder, graph):
    path = folder / "g.pb"
    path.write_bytes(graph.SerializeToString())
    return path


@pytest.mark.parametrize(
    "variant", ["small_075", "small_minimal_100", pytest.param("large_minimal_100", marks=pytest.mark.slow)]
)
def test_every_endpoint_in_float64(tf, tmp_path, variant):
    path = write(tmp_path, frozen(tf, demo_variables(variant), variant))
    verdict = porter.verify(path, sizes=[(97, 64)])
    assert verdict.reference == "frozen graph (g.pb)"
    assert verdict.passed
    assert verdict.missing == []
    assert verdict.function_distance() < 1e-13


def of_pixels(tf, variables):
    """A graph that takes 8-bit pixels: (x * 0.0078431377 - (1, 0.9, 0.8))."""
    graph = frozen(tf, variables, "small_minimal_100")
    [image] = (node for node in graph.node if node.op == "Placeholder")
    for node in graph.node:
        node.input[:] = ["scaled/sub" if name == image.name else name for name in node.input]
    image.attr["dtype"].type = 4  # DT_UINT8
    with tf.Graph().as_default() as own:
        given = tf.compat.v1.placeholder(tf.uint8, (None, None, None, 3), image.name)
        x = tf.cast(given, tf.float32, name="scaled/cast")
        x = tf.raw_ops.Mul(x=x, y=np.float32(0.0078431377), name="scaled/mul")
        tf.raw_ops.Sub(x=x, y=np.array([1, 0.9, 0.8], np.float32), name="scaled/sub")
    graph.node.extend(node for node in own.as_graph_def().node if node.name != image.name)
    return graph


def test_from_the_pixel_on(tf, tmp_path):
    verdict = porter.verify(write(tmp_path, of_pixels(tf, demo_variables("small_minimal_100"))), sizes=[(64, 96)])
    assert verdict.passed
    assert "8-bit pixels as numbers from 0 to 255" in verdict.received


def test_another_preprocessing_is_no_parity_of_pixels(tf, tmp_path):
    port = plan_port(write(tmp_path, of_pixels(tf, demo_variables("small_minimal_100"))))
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3))
    theirs = as_pixels(images) * np.float32(0.0078431377) - np.array([1, 0.9, 0.8], np.float32)
    check_preprocessing(theirs, images, port, "g.pb")
    for other in (theirs * (1 + 3e-6), theirs[:, :16]):
        with pytest.raises(ParityError, match="g.pb: its own preprocessing gives its network"):
            check_preprocessing(other, images, port, "g.pb")


def test_no_operation_of_float32_is_left(tf):
    graph = in_float64(frozen(tf, demo_variables("small_075")))
    single = [(node.name, key) for node in graph.node for key, value in node.attr.items() if value.type == 1]
    assert single == []
    assert not any(node.op.startswith("FusedBatchNorm") for node in graph.node)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("constant", [{"gate": 1 / 6}, {"epsilon": 1e-5}])
def test_the_constants_of_the_graph_are_taken(tf, run, tmp_path, three_blocks, constant, whole):
    """The port has the graph's own, whatever the table says."""
    mapping = load_variant("small_075") if whole else load_mapping(three_blocks.mapping)
    path = write(tmp_path, frozen(tf, random_variables(mapping), mapping=mapping, **constant))
    command = ("verify", path, "--size", "96", *(() if whole else three_blocks.own))
    for reference in ("auto", "tf.nn"):
        ran = run(*command, "--reference", reference)
        assert ran.code == 0, ran.out + ran.err
    port = plan_port(path, PortOptions(mapping=None if whole else three_blocks.mapping))
    known = {"gate": port.network.gate, "epsilon": port.network.epsilon}
    [(name, value)] = constant.items()
    assert known[name] == pytest.approx(value, rel=1e-6)


def test_preprocessing_in_the_graph_does_not_matter(tf, tmp_path):
    graph = frozen(tf, demo_variables("small_075"))
    node = next(node for node in graph.node if node.name == "input")
    node.op = "Cast"
    node.attr.clear()
    node.attr["SrcT"].type, node.attr["DstT"].type = 4, 1
    node.input.append("ImageTensor")
    image = graph.node.add(name="ImageTensor", op="Placeholder")
    image.attr["dtype"].type = 4
    assert porter.verify(write(tmp_path, graph), sizes=[(64, 65)]).passed


def test_an_operation_of_another_name(tf, run, tmp_path):
    """It is found by its place in the graph."""
    graph = frozen(tf, demo_variables("small_075"))
    old, new = "MobilenetV3/expanded_conv_3/expand/hard_swish/mul_1", "somewhere/else"
    for node in graph.node:
        node.name = node.name.replace(old, new)
        for position, source in enumerate(node.input):
            node.input[position] = source.replace(old, new)
    ran = run("verify", write(tmp_path, graph), "--size", "64")
    assert ran.code == 0, ran.out
    assert "50 endpoints" in ran.out
    assert "not in it" not in ran.out


def test_the_graph_of_training_is_no_reference(tf, tarball_folder, tmp_path, run):
    """A training run writes it beside each checkpoint: batch norms use the statistics of each batch."""
    for path in (tarball_folder / "ema").iterdir():
        shutil.copy(path, tmp_path)
    meta = tf.compat.v1.MetaGraphDef.FromString((tmp_path / "model-497500.meta").read_bytes())
    for node in meta.graph_def.node:
        if node.op == "FusedBatchNormV3":
            node.attr["is_training"].b = True
    (tmp_path / "model-497500.meta").write_bytes(meta.SerializeToString())
    ran = run("verify", tmp_path / "model-497500", "--size", "64")
    assert ran.code == 0, ran.err
    assert "reference  tf.nn graph" in ran.out
    assert "assumed    scaling: neither side states them" in ran.out


def test_a_graph_optimised_for_inference(tf, tmp_path):
    """TensorFlow's tool folds batch norms, so that names are found by the order of layers alone."""
    from tensorflow.python.tools.optimize_for_inference_lib import optimize_for_inference

    graph = frozen(tf, demo_variables("small_minimal_100"), "small_minimal_100")
    [image] = (node.name for node in graph.node if node.op == "Placeholder")
    ends = ["MobilenetV3/Predictions/Softmax"]
    path = write(tmp_path, optimize_for_inference(graph, [image], ends, tf.float32.as_datatype_enum))
    verdict = porter.verify(path, sizes=[(97, 64), (65, 80)])
    assert verdict.passed, verdict.sentence()
    assert {"Predictions", "layer_13"} <= {row.endpoint for row in verdict.rows}


def test_a_graph_without_weights_is_no_reference(demo_copy, run):
    """slim's export_inference_graph.py writes one beside the checkpoint, for freeze_graph to fill."""
    (demo_copy.parent / "inference_graph.pb").write_bytes(b"")
    assert "reference  tf.nn graph" in run("verify", demo_copy.parent, "--size", "64").out


@pytest.mark.parametrize("file", ["real/lraspp_small_user.pb", "heads/deeplab_v3_small/frozen.pb"])
def test_backbone_inside_a_segmentation_graph(tf, file):
    path = SHARED.parent / file
    if not path.is_file():
        pytest.skip(f"no {path} (set MNV3_CHECKPOINTS)")
    verdict = porter.verify(path, mapping=SEGMENTATION, sizes=[(97, 130)])
    assert verdict.passed
    assert verdict.missing == ["layer_14"]
    assert verdict.function_distance() < 1e-13


@pytest.mark.parametrize("reference", ["auto", pytest.param("tf.nn", marks=pytest.mark.slow)])
def test_trained_weights_without_false_alarm(tf, reference):
    """NO PARITY by a fixed share of the scale: 1.1e-5 of it was TensorFlow's own rounding."""
    folder = SHARED.parent / "real" / "v3-small_224_1.0_float"
    if not folder.is_dir():
        pytest.skip(f"no {folder} (set MNV3_CHECKPOINTS)")
    verdict = porter.verify(folder / "ema", reference=reference)
    assert verdict.passed
    assert verdict.same_function
    assert verdict.as_exact
    assert verdict.function_distance() < 1e-13


def test_recorded_reference_asks_both_questions(run, three_blocks, tmp_path):
    """Without TensorFlow: float64 values and the reference's own error are in the record."""
    run("release", three_blocks.source, *three_blocks.own, "--out", tmp_path / "dist", "--reference", "tf.nn")
    ran = run("release", "--check", tmp_path / "dist")
    assert ran.code == 0, ran.err
    assert "same function (" in ran.out
    assert "float32 as exact as TensorFlow's" in ran.out
