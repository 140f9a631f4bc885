"""An artifact as a source: a port that was trained further becomes everything that a checkpoint becomes."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from quantized_checkpoint import VARIANT
from safetensors.torch import save_file

import porter
from porter.artifacts.artifact import Artifact, checksum, load_artifact, save_artifact
from porter.errors import ArtifactError, PorterNote
from porter.mapping.files import load_variant
from porter.mapping.stated import Stated
from porter.models.create import open_model
from porter.network.nodes import is_weight
from porter.network.spec import TailLayer
from porter.sources.checkpoint import sha256

REAL = Path(__file__).parents[2] / "shared" / "real"


def images(size=64):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def logits(path, variant="small_075"):
    with torch.no_grad():
        return porter.create_model(variant, path)(images(224)).numpy()


@pytest.fixture(scope="module")
def tuned(demo_folder, tmp_path_factory):
    """The weights of a model of 7 classes after two steps of training, without what torch.save keeps beside them."""
    torch.manual_seed(0)
    model = porter.create_model("small_075", demo_folder, num_classes=7).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("tuned") / "tuned.pth"
    torch.save(dict(model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def stated(demo_folder, tmp_path_factory):
    """A port whose source states a scaling and a classifier of its own."""
    artifact = load_artifact(porter.convert(demo_folder, tmp_path_factory.mktemp("stated") / "a.pth")[0])
    tail = [TailLayer("dense", out=4), TailLayer("activation", activation="silu"), TailLayer("dense")]
    own = replace(load_variant("small_075").input, mean=[0.0] * 3, std=[1.0] * 3)
    random = np.random.default_rng(0)
    arrays = {name: values for name, values in artifact.arrays.items() if "classifier" not in name}
    for number, (outputs, inputs) in ((0, (4, 1024)), (2, (3, 4))):
        arrays[f"classifier.{number}.weight"] = random.normal(0, 0.3, (outputs, inputs)).astype(np.float32)
        arrays[f"classifier.{number}.bias"] = np.zeros(outputs, np.float32)
    said = replace(artifact.metadata, num_classes=3, stated=Stated(input=own, tail=tail, predictions="sigmoid"))
    path = tmp_path_factory.mktemp("stated") / "stated.pth"
    said = replace(said, background_dropped=False, background=b"", checksum=checksum(arrays))
    save_artifact(path, Artifact(arrays, said))
    return path


CHANGES = {
    "trained": lambda model: model.classifier[2].weight.data.mul_(1.5),
    "nothing": lambda model: None,
    "another head": lambda model: model.reset_classifier(5, "max"),
    "no head": lambda model: model.reset_classifier(0),
}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(change, kind, marks=() if change == "trained" or kind == "plain" else pytest.mark.slow)
        for kind in ("plain", "nested", "wrapped", "folded")
        for change in CHANGES
    ],
)
def test_a_saved_state_dict_says_what_it_is(stated, tmp_path, change, kind):
    """Its entries tell neither the scaling nor what is between the layers of its classifier."""
    model = porter.create_model(stated)
    CHANGES[change](model)
    if kind == "folded":
        model = porter.fold(model)
    holder = torch.nn.DataParallel(model) if kind == "wrapped" else model
    weights = holder.state_dict()
    torch.save({"state_dict": weights, "epoch": 1} if kind == "nested" else weights, tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PorterNote)
        opened = open_model(tmp_path / "a.pth")
        again = open_model(porter.convert(tmp_path / "a.pth", tmp_path / "b.safetensors")[0])
    for one in (opened, again):
        assert one.input.mean == [0.0] * 3
        assert one.whole.network.predictions == "sigmoid"
        with torch.no_grad():
            same = one.model(images()), model(images())
        assert torch.allclose(*same, rtol=0, atol=1e-5 * float(same[1].abs().max()))
    assert again.metadata.changed == (change != "nothing" or kind == "folded")


def test_slims_graph_has_no_such_classifier(stated, tmp_path, run):
    ran = run("export-tf", stated, tmp_path / "slim")
    assert (ran.code, "several layers, and that of slim's graph has one" in ran.err) == (2, True)
    assert "variant   small_075\n" in run("convert", stated, "-o", tmp_path / "again.pth").out  # said, and not found


def test_another_number_of_classes_is_said(stated, tmp_path):
    model = porter.create_model(stated, num_classes=9, output_stride=16)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = porter.create_model(tmp_path / "a.pth")
    with torch.no_grad():
        assert torch.equal(found(images()), model(images()))


@pytest.mark.parametrize("given", [[], ["--variant", "small_075"]])
def test_several_layers_without_a_word_on_what_is_between(stated, tmp_path, run, given):
    weights = dict(porter.create_model(stated).state_dict())
    torch.save(weights, tmp_path / "a.pth")
    ran = run("convert", tmp_path / "a.pth", "-o", tmp_path / "b.pth", *given)
    assert ran.code == 2
    assert ("nothing in the file says what is between them" if given else "name the variant") in ran.err
    with pytest.raises(ArtifactError, match="its classifier has several layers"):
        porter.create_model("small_075", tmp_path / "a.pth")
    assert porter.create_model("small_075", tmp_path / "a.pth", num_classes=2)(images()).shape == (1, 2)


OPTIONS = ({}, {"layout": "slim", "keep_background": True}, {"fold_bn": True})


@pytest.mark.parametrize(
    ("options", "output"),
    [
        *((options, "b.safetensors") for options in OPTIONS),
        *(({}, output) for output in ("b.onnx", "b.tflite")),
        *(pytest.param(o, b, marks=pytest.mark.slow) for o in OPTIONS[1:] for b in ("b.onnx", "b.tflite")),
    ],
)
def test_as_from_the_checkpoint(tmp_path, demo_folder, output, options):
    """Whatever the artifact on the way was: the same bytes."""
    direct, _ = porter.convert(demo_folder, tmp_path / f"direct_{output}", **options)
    for layout in ("timm", "slim"):
        artifact, _ = porter.convert(demo_folder, tmp_path / f"{layout}.pth", layout=layout)
        found, port = porter.convert(artifact, tmp_path / f"{layout}_{output}", **options)
        assert found.read_bytes() == direct.read_bytes()
        assert port.mapping.variant == "small_075"


@pytest.mark.parametrize("ending", ["onnx", "tflite", "safetensors", "pth"])
def test_a_bare_state_dict(tmp_path, run, tuned, ending):
    assert "name the variant" in run("convert", tuned, "-o", tmp_path / f"x.{ending}").err
    ran = run("convert", tuned, "-o", tmp_path / f"x.{ending}", "--variant", "small_075")
    assert ran.code == 0, ran.err
    assert "classes   7\n" in ran.out
    expected = logits(tuned)
    if ending == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "x.onnx"))
        found = session.run(None, {"image": images(224).numpy()})[0]
    elif ending == "tflite":
        from porter.parity.references.interpreter import run_file

        [found] = run_file(tmp_path / "x.tflite", np.ascontiguousarray(images(224).numpy().transpose(0, 2, 3, 1)))
    else:
        found = logits(tmp_path / f"x.{ending}")
        arrays = load_artifact(tuned).arrays
        stored = load_artifact(tmp_path / f"x.{ending}")
        weights = filter(is_weight, arrays)  # counters of batches, which nothing computes with, start at 0
        assert all(np.array_equal(arrays[name], stored.arrays[name]) for name in weights)
        assert stored.metadata.sources.keys() == {"tuned.pth"}
        assert not stored.metadata.changed
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_that_differ_from_the_source(tmp_path, demo_folder):
    """Metadata outlives training where the file is written with it; what is made of that says both."""
    path, _ = porter.convert(demo_folder, tmp_path / "a.safetensors")
    artifact = load_artifact(path)
    artifact.arrays["blocks.0.0.conv_pw.weight"] = artifact.arrays["blocks.0.0.conv_pw.weight"] * np.float32(1.01)
    save_artifact(tmp_path / "b.pth", artifact)
    metadata = artifact.metadata
    for given, name in (("b.pth", "c.pth"), ("c.pth", "d.safetensors")):
        porter.convert(tmp_path / given, tmp_path / name)
        found = load_artifact(tmp_path / name)
        assert all(np.array_equal(artifact.arrays[entry], values) for entry, values in found.arrays.items())
        assert found.metadata.changed
        assert found.metadata.sources.items() >= metadata.sources.items()
        assert found.metadata.sources.keys() - metadata.sources.keys() == {"b.pth"}
        assert found.metadata.step == metadata.step == 1000


def test_8_bits(tmp_path, trained, run):
    """Ranges travel; of a source that has integers, they become the same .tflite."""
    sources = [(trained, VARIANT)]
    if (file := REAL / "v3-small_224_1.0_uint8.tflite").exists():
        sources.append((file, "small_100"))
    for source, _ in sources:
        artifact, _ = porter.convert(source, tmp_path / "a.pth", force=True)
        again, _ = porter.convert(artifact, tmp_path / "b.pth", force=True)
        one, other = load_artifact(artifact), load_artifact(again)
        assert one.metadata == other.metadata
        assert one.metadata.ranges
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    direct, _ = porter.convert(source, tmp_path / "direct.tflite")
    found, _ = porter.convert(artifact, tmp_path / "found.tflite")
    assert direct.read_bytes() == found.read_bytes()


@pytest.mark.slow
def test_heads(tmp_path, three_kinds):
    for source in three_kinds:
        artifact, _ = porter.convert(source, tmp_path / "a.pth", force=True)
        for ending in ("safetensors", "onnx", "tflite"):
            direct, _ = porter.convert(source, tmp_path / f"direct.{ending}", force=True)
            found, _ = porter.convert(artifact, tmp_path / f"found.{ending}", force=True)
            assert direct.read_bytes() == found.read_bytes()


@pytest.fixture
def three_kinds(unpacked):
    """A segmenter, a detector and a feature vector."""
    embedder = REAL / "mobilenet_v3_small_075_224_embedder.tflite"
    return [unpacked("deeplab_v3_small")[0], unpacked("ssd_v3_small")[0], *([embedder] if embedder.exists() else [])]


def test_refusals(tmp_path, run, tuned, demo_folder):
    def refused(name, *options):
        ran = run("convert", tmp_path / name, "-o", tmp_path / "x.pth", *options)
        assert ran.code == 2
        assert not (tmp_path / "x.pth").exists()
        return ran.err

    state = torch.load(tuned, weights_only=True)
    save_file({name: value for name, value in state.items() if name != "conv_head.bias"}, tmp_path / "a.safetensors")
    named = ("--variant", "small_075")
    assert "conv_head.bias: missing, expected [1024]" in refused("a.safetensors", *named)
    save_file(state | {"extra.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert "extra.weight: the network has no such entry" in refused("a.safetensors", *named)
    save_file(state, tmp_path / "a.safetensors")
    assert "is a port, whose backbone create_model takes" in refused("a.safetensors", *named, "--backbone")
    assert "the classifier has 7 classes, not 8" in refused("a.safetensors", *named, "--num-classes", 8)
    assert "large_100 state dict" in refused("a.safetensors", "--variant", "large_100")
    ran = run("convert", tuned, demo_folder, "-o", tmp_path, "--format", "onnx")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "is a port, no checkpoint; convert ports one by one" in ran.err
    porter.convert(demo_folder, tmp_path / "folded.pth", fold_bn=True)
    (tmp_path / "own.yaml").write_text("base: small_075.yaml\n")
    assert "its batch norms are folded away, and those" in refused("folded.pth", "--mapping", tmp_path / "own.yaml")
    (tmp_path / "cut.pth").write_bytes(tuned.read_bytes()[:1000])
    assert "not a readable PyTorch weights file" in refused("cut.pth", *named)


def test_hostile_metadata(tmp_path, run, demo_folder, unpacked):
    """One line and exit code 2, or what is wrong does not count."""
    path, _ = porter.convert(demo_folder, tmp_path / "a.safetensors")
    artifact = load_artifact(path)
    for name, background in (("b.pth", b"abc"), ("c.pth", b"\0" * 4096)):
        metadata = replace(artifact.metadata, background=background)
        save_artifact(tmp_path / name, artifact._replace(metadata=metadata))
        ran = run("convert", tmp_path / name, "-o", tmp_path / "x.pth", "--keep-background", "--force")
        assert ran.code == 0, ran.err
        assert "classes   1000\n" in ran.out
        assert "written as zeros" in run("export-tf", tmp_path / name, tmp_path / "tf", "--force").err
    save_artifact(tmp_path / "b.pth", artifact._replace(metadata=replace(metadata, num_classes=-1)), force=True)
    assert run("convert", tmp_path / "b.pth", "-o", tmp_path / "c.onnx").code == 0
    path, _ = porter.convert(unpacked("deeplab_v3_small")[0], tmp_path / "seg.pth")
    artifact = load_artifact(path)
    head = replace(artifact.metadata.segmentation, low="layer_99/expansion_output")
    save_artifact(path, artifact._replace(metadata=replace(artifact.metadata, segmentation=head)), force=True)
    ran = run("convert", path, "-o", tmp_path / "x.onnx")
    assert ran.code == 2
    assert "its metadata states an impossible network" in ran.err


@pytest.mark.tensorflow
def test_verdict(tf, tuned, tmp_path, run):
    """TensorFlow computes the variables that export-tf writes."""
    ran = run("verify", tuned, "--variant", "small_075", "--size", "65x80")
    assert ran.code == 0, ran.err
    assert "same function" in ran.out
    porter.convert(tuned, tmp_path / "x.onnx", "small_075")
    ran = run("verify", tuned, tmp_path / "x.onnx", "--variant", "small_075")
    assert ran.code == 0, ran.err
    assert json.loads(run("verify", tuned, "--variant", "small_075", "--size", "65x80", "--json").out)["passed"]


@pytest.mark.tensorflow
def test_release(tf, tuned, demo_folder, tmp_path, run):
    """A fine-tune: its card says of what, and against what it was verified; --check knows it without TensorFlow."""
    out, names = tmp_path / "dist", tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(7)))
    ran = run("release", tuned, "--variant", "small_075", "--out", out, "--class-names", names, "--onnx")
    assert ran.code == 0, ran.err
    assert "50 endpoints, same function" in ran.out
    card = (out / "README.md").read_text()
    assert "written from a PyTorch state dict by" in card
    assert "Compared with tf.nn graph at 50 endpoints" in card
    assert "TensorFlow computed the weights of this folder, written as a checkpoint" in card
    assert "| licence | not stated" in card
    assert f"| tuned.pth | `{sha256(tuned)}` |" in card
    assert run("release", "--check", out).code == 0
    [path] = out.glob("*.pth")
    assert np.array_equal(logits(path), logits(tuned))
    # And from that release, after another change: its source is named by digest
    artifact = load_artifact(path)
    artifact.arrays["classifier.bias"] = artifact.arrays["classifier.bias"] + np.float32(1)
    save_artifact(tmp_path / "more.safetensors", artifact)
    ran = run("release", tmp_path / "more.safetensors", "--out", tmp_path / "more")
    assert ran.code == 0, ran.err
    card = (tmp_path / "more" / "README.md").read_text()
    assert "**This is a fine-tune**, or another change, of a port" in card
    assert f"| tuned.pth | `{sha256(tuned)}` |" in card
    assert f"| more.safetensors | `{sha256(tmp_path / 'more.safetensors')}` |" in card
    assert json.loads((tmp_path / "more" / "config.json").read_text())["label_names"][0] == "class 0"


@pytest.mark.slow
@pytest.mark.tensorflow
def test_release_of_a_variant_of_ones_own(tf, tuned, tmp_path, run):
    (tmp_path / "mine.yaml").write_text("base: small_075.yaml\nvariant: mine\ntimm: null\nurl: null\n")
    ran = run("release", tuned, "--mapping", tmp_path / "mine.yaml", "--out", tmp_path / "dist")
    assert ran.code == 0, ran.err
    ran = run("release", tmp_path / "dist", "--out", tmp_path / "again")
    assert ran.code == 0, ran.err
    assert run("release", "--check", tmp_path / "again").code == 0


def test_8_bits_are_released_from_their_source(tmp_path, run):
    file = REAL / "v3-small_224_1.0_uint8.tflite"
    if not file.exists():
        pytest.skip(f"no real files at {REAL}")
    porter.convert(file, tmp_path / "a.pth")
    ran = run("release", tmp_path / "a.pth", "--out", tmp_path / "dist")
    assert ran.code == 2
    assert "computes 8 bits in integers, which only its source's interpreter can judge" in ran.err


def test_errors_name_what_was_given(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.pth: no such file"):
        porter.convert(tmp_path / "none.pth", tmp_path / "x.onnx")


def test_other_peoples_state_dicts(tmp_path, run):
    """torchvision's network is another one; a file of Lightning's has its state dict under another suffix."""
    torch.save(
        {"features.0.0.weight": torch.zeros(16, 3, 3, 3), "classifier.3.bias": torch.zeros(9)}, tmp_path / "a.pth"
    )
    torch.save({"state_dict": {"model.conv_stem.weight": torch.zeros(16, 3, 3, 3)}}, tmp_path / "a.ckpt")
    ran = run("convert", tmp_path / "a.pth", "--variant", "small_100", "-o", tmp_path / "x.onnx")
    assert (ran.code, "a.pth: has torchvision's names, and its MobileNetV3 is another network" in ran.err) == (2, True)
    ran = run("convert", tmp_path / "a.ckpt", "--variant", "small_100", "-o", tmp_path / "x.onnx")
    assert (ran.code, "a state dict is read from a .pth" in ran.err) == (2, True)
