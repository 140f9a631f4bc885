"""MobileNetV2 by a mapping file alone (examples/), against Keras's own MobileNetV2 in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

import porter
from porter.mapping.files import load_mapping
from porter.mapping.options import PortOptions
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

EXAMPLES = Path(__file__).parents[1] / "examples"
MAPPING = EXAMPLES / "mobilenet_v2.yaml"
CLASSES, SIZE = 11, 96  # every map that is halved has even sides: there Keras's padding is SAME


@pytest.fixture(scope="module")
def keras_model(tf):
    """Keras's network, every variable random, and its variables in the order of its layers."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    model = keras.applications.MobileNetV2((SIZE, SIZE, 3), weights=None, classes=CLASSES, classifier_activation=None)
    keras.config.set_dtype_policy(before)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, variable.shape)
        else:
            fan_in = np.prod(variable.shape[:3]) if len(variable.shape) == 4 else 25
            values = random.normal(0, np.sqrt(2 / fan_in), variable.shape)
        variable.assign(values.astype(np.float32))
    return model


@pytest.fixture(scope="module")
def checkpoint(keras_model, tmp_path_factory):
    """The same values under slim's names: both list their layers in the order of computation."""
    mapping = load_mapping(MAPPING)
    variables = [np.asarray(v) for layer in keras_model.layers for v in layer.variables]
    expected = expected_variables(mapping, build_network(mapping), CLASSES)
    assert len(variables) == len(expected) == 262
    values = {}
    for want, value in zip(expected, variables, strict=True):
        value = value[None, None] if value.ndim == 2 else value  # the classifier is a convolution in slim
        values[want.source] = value.reshape(want.shape).astype(np.float32)
    prefix = tmp_path_factory.mktemp("v2") / "model-1"
    write_bundle(prefix, values)
    return prefix


def images(count=2):
    return np.random.default_rng(1).uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.tensorflow
def test_it_computes_what_keras_computes(keras_model, checkpoint):
    model = porter.create_model("mobilenet_v2_100", checkpoint, mapping=MAPPING)
    expected = np.asarray(keras_model(images().astype(np.float64), training=False))
    with torch.no_grad():
        found = model.double()(torch.from_numpy(images()).permute(0, 3, 1, 2).double()).numpy()
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.tensorflow
def test_verify_and_every_other_form(checkpoint, run, tmp_path):
    """The port, its .tflite, and the port of that file by the second mapping."""
    ran = run("convert", checkpoint, "--mapping", MAPPING, "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    ran = run("verify", checkpoint, tmp_path / "a.safetensors", "--mapping", MAPPING, "--size", "65x48")
    assert ran.code == 0, ran.out + ran.err
    assert run("convert", checkpoint, "--mapping", MAPPING, "-o", tmp_path / "a.tflite").code == 0
    own = EXAMPLES / "mobilenet_v2_tflite.yaml"
    port = plan_port(tmp_path / "a.tflite", PortOptions(mapping=own))
    assert len(port.plan.steps) == 106  # weights and biases of 53 layers
    ran = run("verify", tmp_path / "a.tflite", "--mapping", own)
    assert ran.code == 0, ran.out + ran.err
    assert "same function" in ran.out or "as exact" in ran.out


def test_keys_are_timms(timm):
    mapping = load_mapping(MAPPING)
    own = porter.create_model("mobilenet_v2_100", mapping=MAPPING).state_dict()
    theirs = timm.create_model("mobilenetv2_100").state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}
    assert mapping.timm is None


def test_it_is_no_variant():
    assert not any("v2" in name for name in porter.list_variants())
