"""``export-tf``: back to TensorFlow, bit for bit."""

import json

import numpy as np
import pytest
import torch
from conftest import FOLDERS, PORTED, same_bits
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import porter
from porter.artifacts.artifact import load_artifact, save_artifact
from porter.exports.convert import convert
from porter.exports.export_tf import export_tf
from porter.mapping.axes import AXES, source_shape, to_source, to_target
from porter.mapping.files import load_variant
from porter.mapping.stated import Stated
from porter.sources import open_checkpoint

sides = st.integers(1, 4)


@given(st.sampled_from([*AXES]), st.tuples(sides, sides, sides, sides))
def test_layouts_have_an_inverse(layout, shape):
    """From entry to variable and back, in the shape that a rule's variable is expected in."""
    order, matrix = AXES[layout]
    shape = shape[: len(order) - 2 * matrix]
    entry = np.arange(np.prod(shape), dtype="f").reshape(shape)
    back = to_source(layout, entry)
    assert back.shape == source_shape(layout, shape)
    assert np.array_equal(to_target(layout, back), entry)


def test_layouts_are_tensorflows():
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert to_target("conv", values)[4, 3, 1, 2] == values[1, 2, 3, 4]
    assert to_target("depthwise", values[..., :1])[3, 0, 1, 2] == values[1, 2, 3, 0]
    assert to_target("dense", values[:1, :1])[4, 3] == values[0, 0, 3, 4]
    assert to_target("conv_ohwi", values)[1, 4, 2, 3] == values[1, 2, 3, 4]


@pytest.mark.parametrize(("variant", "layout", "keep_background"), PORTED)
def test_there_and_back_is_bit_identical(shared, tmp_path, variant, layout, keep_background):
    """convert -> export-tf -> convert, all six variants, the gate fold included."""
    folder = shared / FOLDERS[variant]
    first, _ = convert(folder, tmp_path / "a.pth", layout=layout, keep_background=keep_background)
    exported = export_tf(first, tmp_path / "out")
    second, port = convert(exported.prefix, tmp_path / "b.pth", layout=layout, keep_background=keep_background)
    assert port.plan.num_classes == 1000 + keep_background
    assert exported.classes == 1001
    a, b = load_artifact(first).tensors, load_artifact(second).tensors
    assert all(same_bits(a[name].numpy(), b[name].numpy()) for name in a)
    original, again = open_checkpoint(folder), open_checkpoint(exported.prefix)
    assert set(original) == set(again)
    for name in original:
        assert same_bits(original[name].read(), again[name].read()), name


@pytest.mark.tensorflow
@pytest.mark.parametrize("keep_background", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_slims_graph_restores_it(tf, shared, tmp_path, keep_background):
    """The original ``.meta`` graph with our checkpoint in it gives the recorded logits, of a port of 1,000 too."""
    folder = shared / FOLDERS["small_075"]
    artifact, _ = convert(folder, tmp_path / "a.safetensors", keep_background=keep_background)
    exported = export_tf(artifact, tmp_path / "out", averages=True)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(str(folder / "ema" / "model-497500.meta"))
        variables = [v for v in v1.global_variables() if v.op.name in open_checkpoint(folder)]
        v1.train.Saver(variables).restore(session, str(exported.prefix))
        with np.load(folder / "expected.npz") as file:
            logits = session.run("MobilenetV3/Logits/output:0", {"input:0": file["input"]})
            assert np.abs(logits - file["logits"]).max() <= 1e-5 * np.abs(logits).max()
    assert "moving averages (210" in open_checkpoint(exported.prefix).weights


def test_state_dict_of_another_tool(run, demo_folder, tmp_path):
    """timm's weights are for gate 1/6: exported, slim's definition computes the same."""
    model = porter.create_model("small_075", demo_folder, layout="timm")
    torch.save(dict(model.state_dict()), tmp_path / "timm.pth")
    assert "name the variant" in run("export-tf", tmp_path / "timm.pth", tmp_path / "out").err
    ran = run("export-tf", tmp_path / "timm.pth", tmp_path / "out", "--variant", "small_075")
    assert "211 variables, 1001 classes" in ran.out
    assert "note      " in ran.err
    assert "without its background class, which is written as zeros" in ran.err
    other = porter.create_model("small_075", demo_folder, num_classes=7)
    torch.save(dict(other.state_dict()), tmp_path / "seven.pth")
    ran = run("export-tf", tmp_path / "seven.pth", tmp_path / "seven", "--variant", "small_075")
    assert "has 7 classes; the released graph has 1001 and does not restore it" in ran.err
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        porter.create_model("small_075", tmp_path / "out")(images), model(images), rtol=1e-4, atol=1e-4
    )


def test_refusals(run, demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    assert (
        "is a small_075 artifact, not large_100" in run("export-tf", path, tmp_path / "o", "--variant", "large_100").err
    )
    assert not (tmp_path / "o").exists()
    assert run("export-tf", path, tmp_path / "out").code == 0
    ran = run("export-tf", path, tmp_path / "out")
    assert (ran.code, "exists already" in ran.err) == (2, True)
    assert run("export-tf", path, tmp_path / "out", "--force").code == 0
    ran = run("export-tf", path, path)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    artifact = load_artifact(path)
    del artifact.arrays["conv_head.bias"]
    save_artifact(path, artifact, force=True)
    ran = run("export-tf", path, tmp_path / "new")
    assert ran.code == 2
    assert "conv_head.bias: missing, expected [1024]" in ran.err
    plain = dict(porter.create_model("small_075", demo_folder, fold_bn=True).state_dict())  # no metadata
    torch.save(plain, path)
    ran = run("export-tf", path, tmp_path / "new", "--variant", "small_075")
    assert (ran.code, "its batch norms are folded away" in ran.err) == (2, True)


def test_inspect_knows_it(run, demo_folder, tmp_path):
    path, _ = convert(demo_folder, tmp_path / "a.pth")
    export_tf(path, tmp_path / "out")
    found = json.loads(run("inspect", tmp_path / "out", "--json").out)
    assert (found["variant"], found["step"], found["closest"]["classes"]) == ("small_075", 1000, 1001)


def test_what_variables_do_not_hold_is_said(run, demo_folder, tmp_path):
    """A source's own scaling and predictions are in the port's metadata, and in no checkpoint."""
    stored = load_artifact(convert(demo_folder, tmp_path / "a.pth")[0])
    scaling = load_variant("small_075").input
    stated = Stated(input=replace(scaling, mean=[0.0] * 3, std=[1.0] * 3), predictions="sigmoid", last=432)
    save_artifact(tmp_path / "own.pth", stored._replace(metadata=replace(stored.metadata, stated=stated)))
    ran = run("export-tf", tmp_path / "own.pth", tmp_path / "out")
    assert ran.code == 0
    assert "a checkpoint does not hold its scaling, predictions, which the variant has otherwise" in ran.err
    assert "does not hold" not in run("export-tf", tmp_path / "a.pth", tmp_path / "plain").err
