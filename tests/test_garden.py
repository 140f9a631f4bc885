"""TF Model Garden: object-based checkpoints of its backbones, against what its own code made of the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import endpoints

import porter
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.parity.demo import demo_variables

RECORDED = Path(__file__).parent / "data" / "garden"
# The Garden's name of a map -> ours
MAPS = {
    "small_100": {"2": "layer_2", "3": "layer_4", "4": "layer_9", "5": "layer_12", "6": "layer_15"},
    "large_100": {"2": "layer_4", "3": "layer_7", "4": "layer_13", "5": "layer_16", "6": "layer_19"},
    "edgetpu_100": {"2": "layer_6", "3": "layer_10", "4": "layer_18", "5": "layer_23", "6": "layer_24"},
}


def write_garden(tf, folder, variant, root="backbone"):
    """The demo's weights in a checkpoint of objects whose attributes are named as the Garden's."""
    mappings = [load_variant(variant, names) for names in ("slim", "garden")]
    slim, garden = (
        {want.target: want.source for want in expected_variables(mapping, build_network(mapping), classes=0)}
        for mapping in mappings
    )
    values = demo_variables(variant)
    backbone = tf.Module()
    for target, path in garden.items():
        *parents, last = path.split("/")[1:]
        node = backbone
        for name in parents:
            if not hasattr(node, name):
                setattr(node, name, tf.Module())
            node = getattr(node, name)
        # A layer's own name counts the blocks that the process has made so far
        setattr(node, last, tf.Variable(values[slim[target]], name=f"block_7/{target.replace('.', '_')}"))
    holder = tf.Module()
    setattr(holder, root, backbone)
    checkpoint = tf.train.Checkpoint(**{root: backbone}) if root == "backbone" else tf.train.Checkpoint(model=holder)
    return checkpoint.write(str(folder / "ckpt-1"))


@pytest.mark.tensorflow
@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.slow if v == "large_100" else ()) for v in MAPS])
def test_what_its_own_code_made(tf, tmp_path, run, variant):
    source = write_garden(tf, tmp_path, variant)
    ran = run("convert", source, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert f"variant   {variant} (found from the shapes)" in ran.out
    assert "none left over" in ran.out
    recorded = np.load(RECORDED / f"{variant}.npz")
    model = porter.create_model(variant, tmp_path / "a.pth", layout="slim")
    found = endpoints(model, torch.from_numpy(recorded["images"]).permute(0, 3, 1, 2))
    for name, endpoint in MAPS[variant].items():
        ours, theirs = found[endpoint].permute(0, 2, 3, 1).numpy(), recorded[name]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), name


@pytest.mark.tensorflow
def test_verify(tf, tmp_path, run):
    source = write_garden(tf, tmp_path, "small_100")
    ran = run("verify", source, "--size", "75x64")
    assert ran.code == 0, ran.out + ran.err
    assert "same function" in ran.out


@pytest.mark.tensorflow
def test_inside_a_classifier(tf, tmp_path, run):
    """Its backbone lies in a model. All of it is ported, or its backbone alone."""
    source = write_garden(tf, tmp_path, "small_100", root="trunk")
    ran = run("convert", source, "-o", tmp_path / "whole.pth")
    assert ran.code == 0, ran.err
    ran = run("convert", source, "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "left      model/trunk/layer_with_weights-13 2" in ran.out
