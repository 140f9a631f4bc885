"""Fake quantisation, against TensorFlow's operator and a checkpoint of quantisation-aware training."""

import numpy as np
import pytest
import torch
from conftest import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_checkpoint import VARIANT

import porter
from porter.errors import CheckpointError, ParityError, PorterError
from porter.mapping.ranges import Range
from porter.models.fake_quant import _addition_hook, quantized
from porter.parity.demo import demo_variables
from porter.sources.bundle_writer import write_bundle


@pytest.mark.tensorflow
@settings(deadline=None, max_examples=60)
@given(low=st.floats(-50, 0, width=32), high=st.floats(2**-10, 50, width=32), seed=st.integers(0, 1000))
def test_as_tensorflow_rounds(low, high, seed):
    tf = pytest.importorskip("tensorflow")
    values = np.random.default_rng(seed).uniform(1.2 * low - 1, 1.2 * high + 1, 4000).astype(np.float32)
    expected = tf.quantization.fake_quant_with_min_max_vars(values, low, high).numpy()
    found = quantized(torch.from_numpy(values), Range(low, high)).numpy()
    assert same_bits(np.abs(found), np.abs(expected))  # but for the sign of zero


def test_float_weights_and_ranges_are_kept(trained, run, tmp_path):
    ran = run("convert", trained, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "210 variables, none left over" in ran.out
    assert "ranges    181 of quantised tensors kept" in ran.out
    plain = run("convert", trained.with_name("float"), "-o", tmp_path / "b.pth")
    assert plain.code == 0
    a, b = (torch.load(tmp_path / f, weights_only=True) for f in ("a.pth", "b.pth"))
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "options", [[], *(pytest.param(one, marks=pytest.mark.slow) for one in (["--fold-bn"], ["--layout", "slim"]))]
)
def test_parity_with_tensorflows_fake_quant_graph(trained, run, tmp_path, options):
    run("convert", trained, "-o", tmp_path / "a.safetensors", *options)
    verdict = porter.verify(trained, tmp_path / "a.safetensors", fake_quant=True, sizes=[(96, 96), (65, 80)])
    assert verdict.reference == "tf.nn graph, fake quantisation"
    assert verdict.passed
    # Not a level apart: the quantum of 8 bits would be 4e-3 of a layer's scale
    assert max(row.function for row in verdict.rows) < 1e-6
    plain = porter.verify(trained, tmp_path / "a.safetensors", sizes=[(96, 96)], fake_quant=False)
    assert plain.passed
    assert plain.dequantized


@pytest.mark.tensorflow
def test_fake_quantisation_makes_a_difference(trained):
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 96, 96)).astype("f"))
    with torch.no_grad():
        plain = porter.create_model(VARIANT, trained, fake_quant=False)(images)
        quantised = porter.create_model(VARIANT, trained)(images)
    assert 1e-3 < float((plain - quantised).abs().max() / plain.abs().max()) < 0.5


def test_an_integer_addition_rounds_as_litert_does():
    """LiteRT gives -78 here. The exact sum is -78.4999987: rounding an input twice makes it a tie, which gives -79."""
    scale, skip, branch = 0.39520183205604553, 0.19285814464092255, 0.39970842003822327
    hook = _addition_hook(Range(-132 * scale, 123 * scale, scale=scale), skip, branch)
    given = torch.full((1, 1, 1, 1), -22 * skip, dtype=torch.float64)
    assert round(float(hook(torch.nn.Identity(), (given,), given - 67 * branch)) / scale) == -78


def test_without_ranges(demo_folder, run, tmp_path):
    with pytest.raises(PorterError, match="holds no ranges of fake quantisation"):
        porter.create_model(VARIANT, demo_folder, fake_quant=True)
    ran = run("verify", demo_folder, "--fake-quant")
    assert ran.code == 2
    assert "holds no ranges of fake quantisation" in ran.err


@pytest.mark.tensorflow
def test_other_references_know_none(trained):
    with pytest.raises(ParityError, match="has no fake quantisation"):
        porter.verify(trained, fake_quant=True, reference="frozen")


@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.5, 1.0), (float("nan"), 1.0), (-1.0, float("inf"))])
def test_ranges_that_are_none(trained, tmp_path, limits):
    variables = demo_variables(VARIANT, classes=3)
    variables["MobilenetV3/Conv/act_quant/min"] = np.array(limits[0], "f")
    variables["MobilenetV3/Conv/act_quant/max"] = np.array(limits[1], "f")
    write_bundle(tmp_path / "model-1", variables)
    with pytest.raises(CheckpointError, match="range MobilenetV3/Conv/act_quant: .* holds no zero"):
        porter.exports.convert.convert(tmp_path / "model-1", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
