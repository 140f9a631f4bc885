"""TensorFlow.js models: graph and layers models, whole and quantised, in shards; written here by their documented format."""

import json

import numpy as np
import pytest

import porter
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.parity.demo import demo_variables
from porter.sources import open_checkpoint

SHARD = 4 << 20  # bytes, as the converter cuts them
GATE = "MobilenetV3/expanded_conv/squeeze_excite/Conv_1/mul/y"


def write_model(folder, variables, quantized=None, shard=SHARD):
    """A model of ``variables``; ``quantized`` to uint8, uint16 or float16. Gives the values that it stands for."""
    folder.mkdir()
    weights, data, stand_for = [], b"", {}
    for name, values in variables.items():
        told = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        stored = values
        if quantized == "float16":
            stored = values.astype("<f2")
            stand_for[name] = stored.astype(np.float32)
            told["quantization"] = {"dtype": quantized, "original_dtype": "float32"}
        elif quantized and values.dtype == np.float32:
            low, high = float(values.min()), float(values.max())
            scale = (high - low) / np.iinfo(quantized).max or 1.0
            stored = np.round((values - low) / scale).astype(quantized)
            stand_for[name] = (stored * scale + low).astype(np.float32)
            told["quantization"] = {"dtype": quantized, "min": low, "scale": scale, "original_dtype": "float32"}
        weights.append(told)
        data += np.ascontiguousarray(stored).tobytes()
    names = []
    for number, start in enumerate(range(0, len(data), shard), 1):
        names.append(f"group1-shard{number}of9.bin")
        (folder / names[-1]).write_bytes(data[start : start + shard])
    model = {"format": "graph-model", "modelTopology": {}, "weightsManifest": [{"paths": names, "weights": weights}]}
    (folder / "model.json").write_text(json.dumps(model))
    return {**variables, **stand_for}


def graph_variables(variant="small_075"):
    """The demo's weights as a graph model has them: batch norms folded, constants among them."""
    values, found = demo_variables(variant), {}
    for name, value in values.items():
        scope, _, last = name.rpartition("/")
        if scope.endswith("BatchNorm") or name == "global_step":
            continue
        norm = f"{scope}/BatchNorm"
        if f"{norm}/gamma" not in values:
            found[name] = value
            continue
        factor = values[f"{norm}/gamma"] / np.sqrt(values[f"{norm}/moving_variance"].astype(np.float64) + 1e-3)
        depthwise = last == "depthwise_weights"
        kernel = value * (factor[:, None] if depthwise else factor)
        own = "depthwise" if depthwise else "Conv2D"
        found[f"{scope}/{own}_weights"] = kernel.astype(np.float32)
        offset = values[f"{norm}/beta"] - values[f"{norm}/moving_mean"] * factor
        found[f"{scope}/{own}_bn_offset"] = offset.astype(np.float32)
    found |= {GATE: np.array(0.16667, np.float32), "MobilenetV3/shape": np.array([-1, 1001], np.int32)}
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize("quantized", [None, "float16", "uint8", "uint16"])
def test_graph_model(tf, tmp_path, run, quantized):
    expected = write_model(tmp_path / "js", graph_variables(), quantized)
    opened = open_checkpoint(tmp_path / "js")
    assert opened.format == "tfjs"
    for name, variable in opened.items():
        assert np.array_equal(variable.read(), expected[name]), name
    ran = run("convert", tmp_path / "js", "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    assert "small_075 (found from the shapes)" in ran.out
    assert "mapped    108 variables, none left over; 2 ignored (constant of the graph)" in ran.out
    ran = run("verify", tmp_path / "js" / "model.json", tmp_path / "a.safetensors", "--size", "75x64")
    assert ran.code == 0, ran.out + ran.err
    assert "same function" in ran.out


def test_the_same_as_the_checkpoint(demo_folder, tmp_path, run):
    """A graph model of weights that were not quantised is the checkpoint with folded batch norms."""
    write_model(tmp_path / "js", graph_variables(), shard=1 << 20)
    assert len(list((tmp_path / "js").glob("*.bin"))) > 4  # tensors lie across shards
    porter.convert(tmp_path / "js", tmp_path / "a.safetensors")
    porter.convert(demo_folder, tmp_path / "b.safetensors", fold_bn=True)
    ran = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--tolerance", "1e-6")
    assert ran.code == 0, ran.out


@pytest.mark.parametrize("variant", ["edgetpu_075", "large_minimal_100", "small_100"])
def test_other_variants(variant, tmp_path):
    write_model(tmp_path / "js", graph_variables(variant))
    _, port = porter.convert(tmp_path / "js", tmp_path / "a.safetensors")
    assert port.mapping.variant == variant


def test_layers_model(tmp_path, run):
    """A Keras model has its layers' names, in Keras 3's way."""
    mapping = load_variant("small_075", "keras")
    random = np.random.default_rng(0)
    wanted = expected_variables(mapping, build_network(mapping), classes=7)
    write_model(tmp_path / "js", {w.source: random.uniform(0.5, 1, w.shape).astype(np.float32) for w in wanted})
    ran = run("convert", tmp_path / "js", "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "classes   7" in ran.out


def changed(folder, change):
    path = folder / "model.json"
    model = json.loads(path.read_text())
    change(model["weightsManifest"][0])
    path.write_text(json.dumps(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda group: group["paths"].__setitem__(0, "../group1-shard1of9.bin"),
            "is not a plain name of a file beside",
        ),
        (lambda group: group["paths"].__setitem__(0, "/etc/passwd"), "is not a plain name of a file beside"),
        (lambda group: group["paths"].append("group1-shard8of9.bin"), "group1-shard8of9.bin: no such file, a shard"),
        (lambda group: group["weights"].pop(), "its weights take"),
        (lambda group: group["weights"][-1].update(shape=[3, 1 << 40]), "ends at byte"),
        (lambda group: group["weights"][-1].update(shape=[-1]), "impossible shape"),
        (lambda group: group["weights"][0].update(dtype="complex64"), "'complex64' values cannot be read"),
        (lambda group: group["weights"][0].update(quantization={"dtype": "int4"}), "'int4' values cannot be read"),
        (lambda group: group.update(weights=3), "a TensorFlow.js model has a weightsManifest"),
    ],
)
def test_damaged(tmp_path, run, change, message):
    write_model(tmp_path / "js", {"a/kernel": np.ones((2, 3), np.float32), "b/kernel": np.ones(4, np.float32)})
    changed(tmp_path / "js", change)
    ran = run("convert", tmp_path / "js", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"weightsManifest": []}', "[" * 100_000, '"\udcff"'])
def test_no_model(tmp_path, run, text):
    (tmp_path / "model.json").write_bytes(text.encode(errors="surrogateescape"))
    ran = run("inspect", tmp_path / "model.json")
    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_truncated_shard(tmp_path, run):
    write_model(tmp_path / "js", {"a/kernel": np.ones((20, 30), np.float32)})
    [shard] = (tmp_path / "js").glob("*.bin")
    shard.write_bytes(shard.read_bytes()[:-5])
    ran = run("inspect", tmp_path / "js")
    assert ran.code == 2
    assert "ends at byte 2,400, the shards have 2,395; fetch them again" in ran.err


def test_too_much_json(tmp_path, run):
    (tmp_path / "model.json").write_text('{"weightsManifest": [' + " " * (4 << 20) + "]}")
    assert "larger than any MobileNetV3" in run("inspect", tmp_path / "model.json").err
