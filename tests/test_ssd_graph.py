"""Every detector against the original network as tests/ssd_graph.py states it, without a table of ours.

What this proves: names and shapes of every variable, what is done with each, and the order of the predictions. What it
does not: ssd_graph.py was read from the original code, and run against that code's own outputs for the small network
alone. Its tables of large, minimalistic and EdgeTPU have no record of the original code to answer to. No checkpoint
of the minimalistic detectors was ever published with tensorflow/models; they are a fork's.
"""

import numpy as np
import pytest
import torch
from ssd_graph import BOXES, DETECTORS, Given, Made, detect

import porter
from porter.mapping.files import list_with_head
from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle

CLASSES = 4  # the background is one of them


def close(found, expected, limit):
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() < limit * np.abs(expected).max()


@pytest.mark.tensorflow
def test_the_graph_is_the_original_codes(tf, unpacked):
    """The small detector's recorded endpoints, encodings and logits; not a variable is left over."""
    folder, source = unpacked("ssd_v3_small")
    recorded = np.load(source / "expected.npz")
    checkpoint = open_checkpoint(folder / "model.ckpt-0")
    given = Given({name: variable.read() for name, variable in checkpoint.items()})
    found, encodings, logits = detect(tf, DETECTORS["ssdlite_small"], given, recorded["input"], classes=91)
    assert given.asked == set(given.values) - {"global_step"}
    # Of float32: TensorFlow's own graph, run again, differs by 5.6e-5 of 10
    close(encodings, recorded["box_encodings"], 5e-5)
    close(logits, recorded["class_predictions_with_background"], 5e-5)
    for name, map_ in found.items():
        thinned = recorded[f"ep/{name}"]
        kept = max(-(-side // left) for side, left in zip(map_.shape[1:3], thinned.shape[1:3], strict=True))
        close(map_[:, ::kept, ::kept], thinned, 5e-5)


def test_there_is_a_graph_of_every_detector():
    assert set(DETECTORS) == set(list_with_head("detection"))


@pytest.mark.tensorflow
@pytest.mark.parametrize("variant", DETECTORS)
def test_the_port_is_the_graph(tf, tmp_path, variant):
    """Encodings and logits in float64, at a size that divides unevenly; the variant is found from the shapes."""
    images = np.random.default_rng(7).uniform(-1, 1, (2, 97, 64, 3))
    made = Made()
    _, encodings, logits = detect(tf, DETECTORS[variant], made, images, CLASSES)
    write_bundle(tmp_path / "model-3", made)
    path, port = porter.convert(tmp_path / "model-3", tmp_path / "a.pth", layout="slim")
    assert (port.plan.variant, port.plan.num_classes) == (variant, CLASSES)
    model = porter.create_model(variant, path, layout="slim").double()
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    close(found[0].numpy(), encodings, 1e-12)
    close(found[1].numpy(), logits, 1e-12)
    # Two images differ, and so do a map's boxes: no constant passes
    assert np.abs(logits[0] - logits[1]).max() > 0.1
    assert np.abs(np.diff(logits[:, : BOXES[0]], axis=1)).min() > 1e-6
