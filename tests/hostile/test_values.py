"""Small numbers in the wrong place: one line of error, or the true reason, and never a bug's exit code."""

import json

import numpy as np
import pytest
from PIL import Image

from porter.artifacts.artifact import load_artifact, save_artifact
from porter.artifacts.metadata import decode, encode
from porter.errors import ArtifactError, ParityError
from porter.parity.references.child import Child
from porter.parity.references.wire import Request


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, demo_folder):
    import porter

    path = tmp_path_factory.mktemp("values") / "a.safetensors"
    porter.convert(demo_folder, path)
    return load_artifact(path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("source_gate", 0),
        ("source_gate", 1e-300),
        ("source_gate", -1),
        ("gate", 1e308),
        ("ranges", {"act1": {"min": 0, "max": 0}}),
        ("ranges", {"act1": {"min": 1, "max": 0}}),
        ("ranges", {"act1": {"min": -1e-300, "max": 1e-300}}),
        ("ranges", {"act1": {"min": 0, "max": 6, "scale": 0}}),
        ("ranges", {"act1": {"min": -1e9, "max": 6, "scale": 1e-9}}),
        ("ranges", {"act1": {"min": 0, "max": 6, "unit": [0.1, 0.0], "multiplier": 1}}),
        ("ranges", {"act1": {"min": 0, "max": 6, "input_zero": 1e300, "input_scale": 0.1}}),
    ],
)
def test_metadata(artifact, entry, value):
    text = json.dumps(json.loads(encode(artifact.metadata)) | {entry: value})
    with pytest.raises(ArtifactError, match=f"a.pth: its mnv3-port metadata are impossible: {entry}"):
        decode(text, "a.pth")


@pytest.mark.parametrize("nudge", [-1, 1 << 40])
def test_nudges_beyond_the_weights(run, artifact, tmp_path, demo_folder, nudge):
    name = next(name for name in artifact.arrays if name.endswith("conv_pwl.weight"))
    name = next(iter(artifact.metadata.fold_nudges), name)
    text = json.dumps(json.loads(encode(artifact.metadata)) | {"fold_nudges": {name: [nudge]}})
    save_artifact(tmp_path / "a.pth", artifact._replace(metadata=decode(text, "a.pth")))
    ran = run("export-tf", tmp_path / "a.pth", tmp_path / "tf")
    assert ran.code == 2, ran.err
    assert f"entry {name}: its metadata have fold_nudges beyond" in ran.err


def test_a_first_row_with_a_bad_label_is_no_header(run, demo_folder, tmp_path):
    (tmp_path / "i").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "i" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "i" / "b.png")
    for first, code in (("a.png,tench\n", 2), ("file,label\n", 0)):
        (tmp_path / "l.csv").write_text(first + "b.png,1\n")
        ran = run("evaluate", demo_folder, tmp_path / "i", "--labels", tmp_path / "l.csv", "--workers", "0")
        assert ran.code == code, ran.err
        assert ("line 1" in ran.err) == (code == 2)


def test_the_first_reason_of_a_reference_stays(tmp_path):
    """What asks again, to tidy up or to explain, gets no other one."""
    (tmp_path / "a.onnx").write_bytes(b"no program")
    child = Child(Request("onnx", bytes(tmp_path / "a.onnx"), "a.onnx", 1 << 30))
    with pytest.raises(ParityError) as first:
        child.ready()
    with pytest.raises(ParityError) as second:
        list(child.run(np.zeros((1, 8, 8, 3), np.float32), ["Logits"]))
    assert str(first.value) == str(second.value)
    assert "crashed" not in str(first.value)
