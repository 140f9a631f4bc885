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
from random_tables import mappings

import porter
from porter.artifacts.artifact import load_artifact
from porter.exports.convert import convert
from porter.exports.export_tf import export_tf
from porter.mapping.files import standalone
from porter.mapping.options import PortOptions
from porter.network.nodes import endpoint_names
from porter.parity.demo import random_variables
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

pytestmark = pytest.mark.tensorflow
CLASSES = 3


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
