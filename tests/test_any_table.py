"""What a mapping may say, every form can do: random legal tables, in every form of the network.

The tf.nn reference in float64 is the evidence; it shares the numbers of the table with the rest, and nothing else.
"""

import msgspec
import numpy as np
import pytest
import torch
from conftest import same_bits
from forms import check_files, close, module_outputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import porter
from porter.artifacts.artifact import load_artifact
from porter.exports.convert import convert
from porter.exports.export_tf import export_tf
from porter.mapping.files import load_variant, standalone
from porter.mapping.options import PortOptions
from porter.mapping.schema import VariantMapping
from porter.network.detection import Anchors, Detection
from porter.network.network import build_network
from porter.network.nodes import endpoint_names
from porter.network.segmentation import Segmentation
from porter.network.spec import TAIL_ACTIVATIONS, BlockRow, Pointwise, Stem, TailLayer
from porter.parity.demo import random_variables
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

pytestmark = pytest.mark.tensorflow
ACTIVATION = st.sampled_from(["relu", "hard_swish", "relu6"])
CLASSES = 3


@st.composite
def block(draw, stage):
    fused = draw(st.booleans())
    expansion = draw(st.sampled_from([1, 2, "7/3"]))
    return BlockRow(
        stage=stage,
        kernel=draw(st.sampled_from([1, 3, 5])),
        expansion=expansion,
        out=draw(st.sampled_from([8, 16])),
        se=not fused and draw(st.booleans()),
        activation=draw(ACTIVATION),
        stride=1 if fused and expansion == 1 else draw(st.sampled_from([1, 2])),
        fused=fused,
        skip=draw(st.booleans()),
    )


@st.composite
def tails(draw):
    """Layers of a classifier: none, the dense one, or several with others before and behind it."""
    others = st.sampled_from(
        [TailLayer("dense", out=12), TailLayer("batch_norm", epsilon=1e-3)]
        + [
            TailLayer("activation", activation=name, slope=0.2 if name == "leaky_relu" else None)
            for name in TAIL_ACTIVATIONS
        ]
    )
    if draw(st.booleans()):
        return []
    return [
        *draw(st.lists(others, max_size=4)),
        TailLayer("dense"),
        *draw(st.lists(others.filter(lambda one: one.kind != "dense"), max_size=1)),
    ]


@st.composite
def mappings(draw):
    """A whole mapping: slim's names over a random table, with a head or none."""
    stages = [0]
    for _ in range(draw(st.integers(0, 3))):
        stages.append(stages[-1] + draw(st.integers(0, 1)))
    blocks = [draw(block(stage)) for stage in stages]
    last = draw(st.none() | st.builds(Pointwise, st.just(24), ACTIVATION))
    top = draw(st.none() | st.builds(Pointwise, st.just(16), ACTIVATION)) if last else None
    stem = Stem(draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2])), 8, draw(ACTIVATION))
    slim = load_variant("small_100")
    table = msgspec.structs.replace(slim.network, stem=stem, blocks=blocks, last=last, head=top)
    made = msgspec.structs.replace(
        slim, variant="random", network=table, timm=None, keras=None, url=None, training=None, classes={}
    )
    made = msgspec.convert(msgspec.to_builtins(made), VariantMapping)
    network = build_network(made)
    taps = [name for name in endpoint_names(network, 0) if name.endswith(("expansion_output", "depthwise_output"))]
    kind = draw(st.sampled_from(["classifier", "segmenter", "detector"])) if taps else "classifier"
    if kind == "segmenter":
        window, step = [draw(st.integers(1, 4)), draw(st.integers(1, 9))], [draw(st.integers(1, 2)), 1]
        head = Segmentation(8, window, step, draw(st.sampled_from([1e-5, 1e-3])), draw(st.sampled_from(taps)))
        return msgspec.structs.replace(made, segmentation=head)
    if kind == "detector":
        extra = draw(st.sampled_from([[], [16], [16, 24]]))
        head = Detection(draw(st.sampled_from(taps)), extra, Anchors(0.2, 0.95, [1.0, 2.0]), [10.0, 10.0, 5.0, 5.0])
        return msgspec.structs.replace(made, detection=head, scope="FeatureExtractor/MobilenetV3")
    pooling, predictions = draw(st.sampled_from(["average", "max"])), draw(st.sampled_from(["softmax", "sigmoid"]))
    table = msgspec.structs.replace(made.network, pooling=pooling, tail=draw(tails()), predictions=predictions)
    return msgspec.structs.replace(made, network=table)


def check_table(mapping, height, width, folder):
    """Every form of the network that ``mapping`` describes, with random weights, on an image of this size."""
    path = folder / "random.yaml"
    path.write_bytes(standalone(mapping))
    source = folder / "model-1"
    variables = random_variables(mapping, CLASSES)
    for name in variables:
        if name.endswith("squeeze_excite/Conv_1/biases"):
            variables[name] *= 25  # deviation 5: gates reach both their limits, at -3 and 3
    write_bundle(source, variables, force=True)
    port = plan_port(source, PortOptions(mapping=path))
    images = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)

    # torch float64 = tf.nn float64, endpoint by endpoint; its float32 within float32's rounding
    # (float32 of a tail has too few values for statistics)
    dtype = "float64" if mapping.network.tail else "both"
    verdict = porter.verify(
        source, mapping=path, reference="tf.nn", sizes=[(height, width)], layout="slim", dtype=dtype
    )
    assert verdict.passed, verdict.failure()
    assert {row.endpoint for row in verdict.rows} == {*endpoint_names(port.network, CLASSES)}
    assert verdict.function_distance() <= 1e-12

    # export-tf and back, bit for bit
    artifact, _ = convert(source, folder / "a.safetensors", mapping=path, force=True)
    back = export_tf(artifact, folder / "back", mapping=path, force=True).prefix
    again, _ = convert(back, folder / "b.safetensors", mapping=path, force=True)
    one, other = load_artifact(artifact).arrays, load_artifact(again).arrays
    assert one.keys() == other.keys()
    assert all(same_bits(one[name], other[name]) for name in one)

    # deploy, fold, ONNX and .tflite give what the module gives
    model = porter.create_model("random", source, mapping=path)
    exact, tolerance = module_outputs(model, images)
    forms = [porter.deploy(model, (height, width)), porter.fold(model)]
    if mapping.head is None:
        word = {"average": "avg", "max": "max"}[mapping.network.pooling]
        forms.append(porter.create_model("random", source, mapping=path, global_pool=word, fold_bn=True))
    for form in forms:
        with torch.no_grad():
            outputs = form(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        for found, want in zip(outputs if isinstance(outputs, tuple) else (outputs,), exact, strict=True):
            close(np.asarray(found), want, tolerance)
    small = msgspec.structs.replace(mapping.input, size=32)  # the size of files
    path.write_bytes(standalone(msgspec.structs.replace(mapping, input=small)))
    images = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    files = [convert(source, folder / f"a.{kind}", mapping=path, force=True)[0] for kind in ("onnx", "tflite")]
    check_files(*files, images, *module_outputs(model, images))


SIZES = st.integers(8, 40)
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=3, deadline=None, suppress_health_check=SUPPRESSED, derandomize=True)
@given(mapping=mappings(), height=SIZES, width=SIZES)
def test_a_handful(mapping, height, width, tf, tmp_path_factory):
    check_table(mapping, height, width, tmp_path_factory.mktemp("table"))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=SUPPRESSED)
@given(mapping=mappings(), height=SIZES, width=SIZES)
def test_two_hundred(mapping, height, width, tf, tmp_path_factory):
    check_table(mapping, height, width, tmp_path_factory.mktemp("table"))
