"""Every activation that a mapping may name, in every form of a network."""

import itertools
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import porter
from porter.mapping.files import load_mapping
from porter.network.spec import ACTIVATIONS, TAIL_ACTIVATIONS, Activation
from porter.parity.demo import random_variables
from porter.sources.bundle_writer import write_bundle

KINDS = get_args(Activation)
CLASSES = 100
MAPPING = """
base: slim.yaml
variant: {kind}_net
timm: null
classes: {{count: null, background: null, background_of: null}}
input: {{size: 48}}
network:
  multiplier: 1.0
  stem: {{kernel: 3, stride: 2, out: 16, activation: {kind}}}
  blocks:
    - {{stage: 0, kernel: 3, expansion: 1, out: 16, se: true,  activation: {kind}, stride: 2}}
    - {{stage: 0, kernel: 5, expansion: 3, out: 16, se: true,  activation: {kind}, stride: 1}}
{fused}
    - {{stage: 1, kernel: 3, expansion: 4, out: 24, se: false, activation: {kind}, stride: 2}}
  last: {{out: 48, activation: {kind}}}
  head: {{out: 64, activation: {kind}}}
"""
FUSED = """
    - {{stage: 0, kernel: 3, expansion: 2, out: 16, se: false, activation: {kind}, stride: 1, fused: true}}
    - {{stage: 0, kernel: 1, expansion: 1, out: 16, se: false, activation: {kind}, stride: 1, fused: true}}
"""


class Made:
    """A mapping file of one activation, and a checkpoint whose maps reach beyond 6."""

    def __init__(self, folder, kind, fused=True):
        self.kind, self.mapping = kind, folder / f"{kind}.yaml"
        self.mapping.write_text(MAPPING.format(kind=kind, fused=FUSED.format(kind=kind) if fused else ""))
        self.variables = random_variables(load_mapping(self.mapping), CLASSES)
        for name, values in self.variables.items():
            if name.endswith(("expand/BatchNorm/gamma", "depthwise/BatchNorm/gamma")):
                values *= 2
        self.source = folder / f"{kind}-1"
        write_bundle(self.source, self.variables)

    def verify(self, port=None, **options):
        sizes = [(48, 48) if port else (51, 40)]  # a file takes what the network was trained on
        verdict = porter.verify(self.source, port, mapping=self.mapping, sizes=sizes, **options)
        assert verdict.passed, verdict.failure()
        return verdict

    def model(self):
        return porter.create_model(f"{self.kind}_net", self.source, mapping=self.mapping)

    def logits(self, images):
        with torch.no_grad():
            return self.model()(images)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 48)).astype("f"))


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    return Made(tmp_path, request.param)


def test_one_table():
    assert set(ACTIVATIONS) == set(KINDS)


@pytest.mark.tensorflow
def test_torch_and_tensorflow(tf, made, tmp_path):
    verdict = made.verify(reference="tf.nn")
    assert verdict.function_distance() < 1e-12
    assert verdict.variant == f"{made.kind}_net"


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_graph(tf, kind, tmp_path):
    """Of the operations that slim makes."""
    from slim_graph import frozen

    made = Made(tmp_path, kind, fused=False)
    graph = frozen(tf, made.variables, mapping=load_mapping(made.mapping))
    made.source.with_name("graph.pb").write_bytes(graph.SerializeToString())
    verdict = made.verify(reference="frozen")
    assert not verdict.missing
    assert verdict.function_distance() < 1e-12


@pytest.mark.tensorflow
@pytest.mark.parametrize("suffix", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("pth", "safetensors")), "onnx"])
def test_files(tf, made, tmp_path, suffix):
    pytest.importorskip("onnxruntime" if suffix == "onnx" else "torch")
    port, _ = porter.convert(made.source, tmp_path / f"own.{suffix}", mapping=made.mapping)
    made.verify(port, reference="tf.nn")


@pytest.mark.parametrize("builtin", [True, False])
def test_tflite(made, images, tmp_path, builtin):
    """By both sets of kernels."""
    pytest.importorskip("ai_edge_litert")
    from lite import tflite_logits

    lite = pytest.importorskip("ai_edge_litert.interpreter")
    port, _ = porter.convert(made.source, tmp_path / "own.tflite", mapping=made.mapping)
    found = tflite_logits(lite, port.read_bytes(), images.permute(0, 2, 3, 1).numpy().copy(), builtin)
    expected = made.logits(images).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "made", [pytest.param(k, marks=() if k == "relu6" else pytest.mark.slow) for k in KINDS], indirect=True
)
def test_deployed(made):
    """The whole variants of test_deploy.py have the others."""
    pytest.importorskip("onnxruntime")
    made.verify(deployed=True, reference="tf.nn")


def test_one_piece_for_phones(made, images):
    """The network that ExecuTorch takes."""
    from porter.exports.deploy import model_program
    from porter.exports.plain import Plain

    with torch.no_grad():
        found = Plain(model_program(made.model()))(images)
    expected = made.logits(images)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_activations_in_a_row_have_gradients(tmp_path, images):
    """Each pair of them: one that works in place writes over what the gradient of the one before it needs."""
    names = [name for pair in itertools.product(TAIL_ACTIVATIONS, repeat=2) for name in pair]
    layers = [f"{{kind: activation, activation: {name}{', slope: 0.2' * (name == 'leaky_relu')}}}" for name in names]
    (tmp_path / "own.yaml").write_text(
        MAPPING.format(kind="relu", fused="")
        + f"  tail: [{{kind: dense, out: 8}}, {', '.join(layers)}, {{kind: dense}}]\n"
    )
    model = porter.create_model("relu_net", mapping=tmp_path / "own.yaml", num_classes=3).train()
    model(images).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())


def test_they_differ(tmp_path, images):
    """The maps reach what tells the activations apart."""
    networks = [Made(tmp_path, kind) for kind in KINDS]
    found = []
    for network in networks:
        network.source = networks[0].source
        found.append(network.logits(images))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one] - found[other]).abs().max() > 0.05 * found[one].abs().max()
