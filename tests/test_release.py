"""``release``: the folder as its users read it (timm, torch.hub, Hugging Face, sha256sum), and what is refused."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings, strategies
from markdown_it import MarkdownIt

import porter
from porter.artifacts.artifact import load_artifact
from porter.commands import cli
from porter.mapping.files import list_variants, load_variant
from porter.network.network import build_network
from porter.network.node import multiply_accumulates
from porter.network.nodes import nodes
from porter.parity.demo import write_demo_checkpoint

# shared/FACTS.md: parameters and multiply-accumulates at 224
PUBLISHED = {
    "large_075": (3993528, 154560624),
    "large_100": (5483032, 216589760),
    "large_minimal_100": (3924288, 209136704),
    "small_075": (2041872, 43399344),
    "small_100": (2542856, 56510400),
    "small_minimal_100": (2044736, 52288448),
}


def command(*arguments):
    return [sys.executable, "-m", "porter", *map(str, arguments)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A release of the demo checkpoint, against its recorded reference (no TensorFlow)."""
    folder = tmp_path_factory.mktemp("release")
    source = write_demo_checkpoint(folder)
    options = ("release", source, "--out", folder / "dist", "--reference", source / "expected.npz")
    cli.main([*map(str, options)], standalone_mode=False)
    return folder / "dist"


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "dist"))


def sealed(folder):
    """Write SHA256SUMS anew, as somebody who tampers with a release would."""
    from porter.releases.folder import write_checksums

    write_checksums(folder)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_cost(variant):
    network = build_network(load_variant(variant))
    assert multiply_accumulates(nodes(network, 1000), (224, 224)) == PUBLISHED[variant][1]
    model = porter.create_model(variant)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[variant][0]


@pytest.mark.parametrize("variant", list_variants())
@pytest.mark.parametrize("size", [193, pytest.param(224, marks=pytest.mark.slow)])
def test_cost_is_what_the_model_does(variant, size):
    """Counted by hooks on the layers as they run."""
    model = porter.create_model(variant)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert multiply_accumulates(nodes(build_network(load_variant(variant)), 1000), (size, size)) == counted


def test_names_and_checksums(made):
    [path] = made.glob("*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"mobilenetv3_small_075-{digest[:8]}.pth"
    names = {p.name for p in made.iterdir()}
    assert names == {
        *(path.name, "model.safetensors", "config.json", "README.md", "SHA256SUMS"),
        *("parity.json", "parity.html", "reference.npz"),
    }
    assert (
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, capture_output=True).returncode
        == 0
    )
    assert len((made / "SHA256SUMS").read_text().splitlines()) == len(names) - 1


def test_torch_hub_accepts_the_hash(made, tmp_path):
    [path] = made.glob("*.pth")
    loaded = torch.hub.load_state_dict_from_url(path.as_uri(), str(tmp_path), check_hash=True, weights_only=True)
    assert loaded.keys() == porter.create_model("small_075").state_dict().keys()


def test_timm_loads_the_folder(timm, made):
    model = timm.create_model(f"local-dir:{made}", pretrained=True).eval()
    assert model.pretrained_cfg["crop_pct"] == 0.875
    assert model.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    [path] = made.glob("*.pth")
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype("f"))
    with torch.no_grad():
        ours, theirs = porter.create_model("small_075", path)(x), model(x)
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


def test_card_as_hugging_face_and_timm_read_it(made):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(made / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.tags == ["image-classification", "timm", "mobilenetv3"]
    index = yaml.safe_load(re.search("<!--\n(Type: model-index.*)-->", card.text, re.S)[1])
    [model] = index["Models"]
    [path] = made.glob("*.pth")
    assert model["Name"] == model["Metadata"]["ID"] == "mobilenetv3_small_075"
    assert model["Metadata"]["Parameters"] == 2041872
    assert model["Metadata"]["FLOPs"] == 43399344
    assert model["Metadata"]["File Size"] == path.stat().st_size
    assert "LR" not in model["Metadata"]  # the recipe is Google's, these weights are not
    assert card.data.license is None
    assert card.data.datasets is None
    assert "Squeeze-and-Excitation Block" in model["Metadata"]["Architecture"]
    assert "Results" not in model
    assert path.name in card.text


def test_safetensors_tells_what_was_measured(made):
    [path] = made.glob("*.pth")
    plain, twin = load_artifact(path).metadata, load_artifact(made / "model.safetensors").metadata
    assert plain.parity == {}
    assert twin.parity["reference"] == "recorded (expected.npz)"
    assert twin.parity["endpoints"] == "50"
    parity = json.loads((made / "parity.json").read_text())
    assert parity["passed"]
    assert parity["digests"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "/" not in parity["checkpoint"] + parity["artifact"]


@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_same_input_same_bytes(made, tmp_path, run, elsewhere):
    """In another process, too."""
    source = write_demo_checkpoint(tmp_path / "elsewhere")
    folder = tmp_path / "again"
    words = ("release", source, "--out", folder, "--reference", source / "expected.npz")
    if elsewhere:
        subprocess.run(command(*words), check=True)
    else:
        assert run(*words).code == 0
    for path in made.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_check_accepts(made, run):
    ran = run("release", "--check", made)
    assert ran.code == 0, ran.err
    assert "50 endpoints, same function" in ran.out
    assert run("release", "--check", made.parent).out == ran.out


def shown(markdown):
    """What a reader sees of ``markdown``, line by line. Code spans and links are text; HTML but comments is refused."""
    lines = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        assert token.type != "html_block" or re.fullmatch("<!--.*-->\n?", token.content, re.S)
        kinds = {child.type for child in token.children or []}
        assert not kinds & {"html_inline", "image", "em_open"}, token.content
        lines.append("".join("\n" if c.type == "softbreak" else c.content for c in token.children or []))
    return lines


@settings(deadline=None)
@given(strategies.text(strategies.sampled_from("<>&'\"`*_|#[]\\()!~$-+. ;xa1") | strategies.characters(), max_size=30))
@example("it's \\| one")
def test_text_from_files_is_shown_as_it_is(text):
    from porter.text import markdown_text, printable

    for known in (text, f"{text}&#x27;&amp;<b>", f"x{text}"):
        written, wanted = markdown_text(known), printable(known)
        for before, after in (("Compared with ", " by us"), ("# Model ", " here"), ("| a |\n|---|\n| In ", " cell |")):
            line = next(line for line in reversed(shown(before + written + after)) if line)
            assert line == f"{before.rpartition('# ')[2].rpartition('| ')[2]}{wanted}{after.removesuffix(' |')}"


def test_the_card_shows_texts_as_they_are(tmp_path, run, demo_folder):
    nasty = """a<b>&'"*_|#[]\\`&amp;-->"""
    prefix = tmp_path / "run" / "mo|d_e_l&#39;<b>*-1000"
    prefix.parent.mkdir()
    for file in (demo_folder / "ema").glob("model-1000.*"):
        shutil.copy(file, prefix.with_name(prefix.name + file.name.removeprefix("model-1000")))
    options = ("--reference", demo_folder / "expected.npz", "--name", "a._b_.c", "--license", nasty, "--dataset", nasty)
    ran = run("release", prefix, "--out", tmp_path / "dist", *options)
    assert ran.code == 0, ran.err
    text = (tmp_path / "dist" / "README.md").read_text().split("---\n", 2)[2]
    lines = shown(text)
    assert "a._b_.c" in lines
    assert lines.count(f"{nasty}, as stated by whoever released this port") == 2
    assert f"{prefix.name}.index" in lines
    assert any("as exact as TensorFlow's" in line for line in lines)


def packed(folder, place):
    """``folder`` as a tarball in ``place``, and its digest."""
    tarball = place / "v3.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        archive.add(folder, "v3")
    return tarball, hashlib.sha256(tarball.read_bytes()).hexdigest()


def test_the_cards_comment_is_not_ended_by_a_mapping(tmp_path, run, demo_folder):
    """Statements about Google's checkpoints come from the mapping."""
    (tmp_path / "own.yaml").write_text(
        "base: small_075.yaml\nurl: 'https://x) <b>'\ntraining: {lr: 1, dropout: 0, weight_decay: 0, momentum: 0, batch_size: 1, "
        "rmsprop_decay: 0, resources: '--> <script>', step: 1000}\n"
    )
    tarball, digest = packed(demo_folder, tmp_path)
    options = ("--reference", demo_folder / "expected.npz", "--mapping", tmp_path / "own.yaml", "--sha256", digest)
    ran = run("release", tarball, "--out", tmp_path / "dist", *options)
    assert ran.code == 0, ran.err
    text = (tmp_path / "dist" / "README.md").read_text().split("---\n", 2)[2]
    assert "<script>" in text
    assert not any("<" in line for line in shown(text))


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "parity.json", "reference.npz"])
def test_check_finds_any_changed_byte(copy, run, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    ran = run("release", "--check", copy)
    assert ran.code == 2
    assert f"{name}: its SHA-256 is not the one in SHA256SUMS" in ran.err


def test_check_finds_missing_and_added_files(copy, run):
    (copy / "config.json").unlink()
    (copy / "extra.bin").write_bytes(b"x")
    ran = run("release", "--check", copy)
    assert ran.code == 2
    assert "config.json: listed in SHA256SUMS, but missing" in ran.err
    assert "extra.bin: not listed" in ran.err


def changed_weights(folder, value=None):
    """Other weights under consistent names and checksums."""
    from porter.artifacts.artifact import save_artifact
    from porter.releases.folder import add_hash

    [path] = folder.glob("*.pth")
    artifact = load_artifact(path)
    weight = artifact.tensors["blocks.2.0.conv_dw.weight"]
    weight[0, 0, 0, 0] = weight[0, 0, 0, 0] + 1 if value is None else value
    path.unlink()
    plain = folder / "mobilenetv3_small_075.pth"
    save_artifact(plain, artifact)
    twin = load_artifact(folder / "model.safetensors").metadata
    save_artifact(folder / "model.safetensors", artifact._replace(metadata=twin), force=True)
    path = add_hash(plain)
    parity = json.loads((folder / "parity.json").read_text())
    parity["digests"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "parity.json").write_text(json.dumps(parity))
    sealed(folder)


def test_check_computes_and_does_not_believe(copy, run):
    changed_weights(copy)
    ran = run("release", "--check", copy)
    assert ran.code == 1
    assert "no parity with recorded (reference.npz): another function, from layer_5" in ran.err


def test_check_refuses_nan(copy, run):
    changed_weights(copy, float("nan"))
    ran = run("release", "--check", copy)
    assert ran.code == 2
    assert "blocks.2.0.conv_dw.weight: not finite" in ran.err


def test_check_finds_contradictions(copy, run):
    [path] = copy.glob("*.pth")
    path.rename(copy / "mobilenetv3_small_075-00000000.pth")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architecture": "resnet50"}))
    sealed(copy)
    ran = run("release", "--check", copy)
    assert ran.code == 2
    assert "its name does not end in the first 8 of its SHA-256" in ran.err
    assert "architecture='resnet50'" in ran.err


def test_no_parity_no_release(tmp_path, run):
    """The reference of other weights."""
    source = write_demo_checkpoint(tmp_path)
    with np.load(source / "expected.npz") as file:
        arrays = dict(file)
    arrays["ep/layer_9"] = arrays["ep/layer_9"] * 1.01
    np.savez(tmp_path / "other.npz", **arrays)
    ran = run("release", source, "--out", tmp_path / "dist", "--reference", tmp_path / "other.npz")
    assert ran.code == 1
    assert "from layer_9 on" in ran.err
    assert "nothing released" in ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.npz", "small_075_demo"]


def test_nan_is_refused(make_checkpoint, tmp_path, run):
    def spoil(variables):
        variables["MobilenetV3/Conv/weights"][0, 0, 0, 0] = np.nan

    ran = run("release", make_checkpoint(spoil), "--out", tmp_path / "dist")
    assert ran.code == 2
    assert "MobilenetV3/Conv/weights: 1 of 432 values are NaN or infinite" in ran.err
    assert not (tmp_path / "dist").exists()


def test_folders_that_are_in_the_way(made, demo_folder, tmp_path, run):
    options = ("--reference", demo_folder / "expected.npz", "--out")
    (tmp_path / "file").touch()
    assert "is a file" in run("release", demo_folder, *options, tmp_path / "file").err
    assert "holds other files" in run("release", demo_folder, *options, tmp_path, "--force").err
    assert "holds a release already" in run("release", demo_folder, *options, made).err
    assert "--out FOLDER is needed" in run("release", demo_folder).err
    assert "not a release" in run("release", "--check", tmp_path).err
    assert "no such folder" in run("release", "--check", tmp_path / "none").err


def test_force_replaces(copy, demo_folder, run):
    (copy / "README.md").write_text("old")
    ran = run("release", demo_folder, "--reference", demo_folder / "expected.npz", "--out", copy, "--force")
    assert ran.code == 0, ran.err
    assert "old" not in (copy / "README.md").read_text().split()
    assert [p.name for p in copy.parent.iterdir()] == ["dist"]


def test_interrupted_half_way(demo_folder, tmp_path):
    options = ("--reference", demo_folder / "expected.npz", "--out", tmp_path / "dist")
    process = subprocess.Popen(command("release", demo_folder, *options), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".dist.*/*.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all(tmp_path, run):
    """Two good ones, a damaged one and a text file; one folder of photos serves all."""
    photos = tmp_path / "photos" / "n01440764"
    photos.mkdir(parents=True)
    pytest.importorskip("PIL.Image").new("RGB", (50, 40), "teal").save(photos / "a.png")
    sources = tmp_path / "sources"
    for variant in ("small_075", "small_minimal_100"):
        write_demo_checkpoint(sources, variant)
    (sources / "README.md").write_text("no checkpoint")
    (sources / "damaged").mkdir()
    (sources / "damaged" / "model.index").write_bytes(b"no index")
    asked = command("release", "--all", sources, "--out", tmp_path / "dist", "--evaluate", photos.parent)
    ran = subprocess.run(asked, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "damaged" in ran.stderr
    assert sorted(p.name for p in (tmp_path / "dist").iterdir()) == [
        "mobilenetv3_small_075",
        "mobilenetv3_small_minimal_100",
    ]
    for card in (tmp_path / "dist").glob("*/README.md"):
        assert "1 labelled images" in card.read_text()
    assert run("release", "--check", tmp_path / "dist").out.count("ok   ") == 2
    assert (
        "no tarballs"
        in run("release", "--all", tmp_path / "dist" / "mobilenetv3_small_075", "--out", tmp_path / "x").err
    )


@pytest.mark.parametrize(
    "kinds",
    [["onnx", "torchscript"], pytest.param(["onnx", "tflite", "pte", "pt2", "torchscript"], marks=pytest.mark.slow)],
)
def test_exports(demo_folder, tmp_path, run, kinds):
    pytest.importorskip("onnxruntime")
    options = ("--reference", demo_folder / "expected.npz", *(f"--{kind}" for kind in kinds))
    ran = run("release", demo_folder, "--out", tmp_path / "dist", *options)
    assert ran.code == 0, ran.err
    errors = json.loads((tmp_path / "dist" / "parity.json").read_text())["exports"]
    assert errors.keys() == set(kinds)
    assert all(0 < error < 1e-5 for error in errors.values())
    assert run("release", "--check", tmp_path / "dist").code == 0
    card = (tmp_path / "dist" / "README.md").read_text()
    assert all(f"({kind})" in card for kind in errors)


@pytest.mark.slow
def test_the_same_bytes(demo_folder, tmp_path, run):
    """Of every export whose compiler gives them."""
    for name in "ab":
        ran = run("release", demo_folder, "--out", tmp_path / name, "--onnx", "--tflite", "--pte")
        assert ran.code == 0, ran.err
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in "ab"]
    assert sums[0] == sums[1]


def test_libraries_are_silenced_but_for_errors(capfd):
    """Those that write to the descriptor, too."""
    import os

    from porter.releases.exports import _quiet

    def export():
        with _quiet():
            os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
            print("exporting")
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        export()
    assert capfd.readouterr() == ("", "")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_evaluated_card(demo_folder, tmp_path, run):
    image = pytest.importorskip("PIL.Image")
    photos = tmp_path / "photos" / "n01440764"
    photos.mkdir(parents=True)
    image.new("RGB", (50, 40), "teal").save(photos / "a.png")
    source = ("--reference", demo_folder / "expected.npz", "--evaluate", photos.parent)
    ran = run("release", demo_folder, *source, "--out", tmp_path / "dist")
    assert ran.code == 0, ran.err
    card = (tmp_path / "dist" / "README.md").read_text()
    assert "1 labelled images" in card
    hub = pytest.importorskip("huggingface_hub")
    results = hub.ModelCard.load(tmp_path / "dist" / "README.md").data.eval_results
    assert [r.metric_name for r in results] == ["Top 1 accuracy", "Top 5 accuracy"]
    assert json.loads((tmp_path / "dist" / "evaluation.json").read_text())["images"] == 1


@pytest.mark.slow
def test_all_six_in_timm(timm, shared, tmp_path):
    """The shared checkpoints released at once; timm's logits are the original graph's."""
    ran = subprocess.run(command("release", "--all", shared, "--out", tmp_path), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.iterdir())) == 6
    for folder in tmp_path.iterdir():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        checkpoint = json.loads((folder / "parity.json").read_text())["checkpoint"]
        with np.load(shared / checkpoint / "expected.npz") as file:
            images, logits = torch.from_numpy(file["input"]).permute(0, 3, 1, 2), file["logits"][:, 1:]
        with torch.no_grad():
            assert np.abs(model(images).numpy() - logits).max() <= 1e-5 * np.abs(logits).max()


def googles(folder, step=497500, classes=1001):
    """A checkpoint that looks like Google's small 0.75 but for its values."""
    from porter.parity.demo import demo_variables
    from porter.sources.bundle_writer import write_bundle

    variables = demo_variables("small_075", classes=classes)
    (folder / "ema").mkdir(parents=True)
    write_bundle(folder / "ema" / f"model-{step}", variables)
    return folder


def test_claims_for_googles_checkpoints(tmp_path, run, demo_folder):
    """Only of a tarball whose digest is told: what is in it looks the same for anybody's weights."""
    hub = pytest.importorskip("huggingface_hub")
    folder = googles(tmp_path / "v3")
    tarball, digest = packed(folder, tmp_path)
    for source, told, why in (
        (tarball, "0" * 64, f"its SHA-256 is {digest}, not 000"),
        (folder, digest, "is no tarball"),
    ):
        ran = run("release", source, "--out", tmp_path / "dist", "--sha256", told)
        assert ran.code == 2
        assert why in ran.err
    assert (
        "--sha256 has no meaning here: a digest is of one tarball"
        in run("release", tmp_path, "--all", "--out", tmp_path, "--sha256", "0").err
    )
    recorded = ("--reference", demo_folder / "expected.npz")  # of the same values
    ran = run("release", tarball, "--out", tmp_path / "dist", "--sha256", digest.upper(), *recorded)
    assert ran.code == 0, ran.err
    [path] = (tmp_path / "dist").glob("*.pth")
    assert path.name.startswith("tf_mobilenetv3_small_075-")
    card = hub.ModelCard.load(tmp_path / "dist" / "README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["imagenet-1k"])
    assert "LR: 0.045" in card.text
    assert "v3-small_224_0.75_float.tgz](https://storage.googleapis.com/mobilenet_v3" in card.text
    assert f"that whoever released this port gave, `{digest}`" in card.text


@pytest.mark.parametrize(
    "source",
    [
        {},  # the released step says nothing of weights
        pytest.param({"step": 497501}, marks=pytest.mark.slow),
        pytest.param({"classes": 38}, marks=[pytest.mark.slow, pytest.mark.tensorflow]),
    ],
)
def test_no_claims_for_others(tmp_path, run, demo_folder, source):
    folder = googles(tmp_path / "v3", **source)
    recorded = () if "classes" in source else ("--reference", demo_folder / "expected.npz")  # of the same values
    ran = run("release", folder, "--out", tmp_path / "dist", *recorded)
    assert ran.code == 0, ran.err
    card = (tmp_path / "dist" / "README.md").read_text()
    [path] = (tmp_path / "dist").glob("*.pth")
    assert path.name.startswith("mobilenetv3_small_075-")
    for claim in ("apache", "imagenet-1k", "RMSProp", "4x4 TPU"):
        assert claim not in card
    assert "| licence | not stated" in card


@pytest.mark.slow
@pytest.mark.tensorflow
def test_what_the_owner_says(tmp_path, run, tf):
    """A fine-tune of three classes, by its own name; predict and create_model know the names."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (50, 40), "teal").save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("rose\n[click](x) <b>tulip</b> | `x`\nlily\n")
    folder = googles(tmp_path / "v3", classes=3)
    options = (
        "--name",
        "flowers",
        "--license",
        "mit",
        "--dataset",
        "me/flowers",
        "--class-names",
        tmp_path / "names.txt",
    )
    ran = run("release", folder, "--out", tmp_path / "dist", *options)
    assert ran.code == 0, ran.err
    [path] = (tmp_path / "dist").glob("flowers-*.pth")
    card = (tmp_path / "dist" / "README.md").read_text()
    assert card.startswith("---\ntags:")
    assert "license: mit" in card
    assert "| licence | mit, as stated by whoever released this port |" in card
    assert "# flowers" in card
    assert json.loads((tmp_path / "dist" / "config.json").read_text())["label_names"][0] == "rose"
    assert run("release", "--check", tmp_path / "dist").code == 0
    found = json.loads(run("predict", path, tmp_path / "a.png", "--json").out)
    assert sorted(g["label"]["names"] for g in found["classes"])[1:] == ["lily", "rose"]
    (tmp_path / "names.txt").write_text("rose\ntulip\n")
    assert "2 class names for 3 classes" in run("release", folder, "--out", tmp_path / "x", *options).err
    assert "is not a plain name" in run("release", folder, "--out", tmp_path / "x", "--name", "../x").err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_variant_of_ones_own(tmp_path, run, tf):
    """Exports, the accuracy and --check know it by the mapping in the folder."""
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "photos" / "n01440764").mkdir(parents=True)
    image.new("RGB", (50, 40), "teal").save(tmp_path / "photos" / "n01440764" / "a.png")
    mapping = tmp_path / "mine.yaml"
    mapping.write_text("base: small_075.yaml\nvariant: mine\ntimm: null\nurl: null\n")
    options = ("--mapping", mapping, "--torchscript", "--evaluate", tmp_path / "photos")
    ran = run("release", googles(tmp_path / "v3"), "--out", tmp_path / "dist", *options)
    assert ran.code == 0, ran.err
    assert "photos (1 labelled images)" in (tmp_path / "dist" / "README.md").read_text()
    mapping.unlink()
    ran = run("release", "--check", tmp_path / "dist")
    assert ran.code == 0, ran.err
    assert ": mine, 50 endpoints" in ran.out
    assert "variant   mine" in run("inspect", tmp_path / "dist").out
    assert run("predict", tmp_path / "dist", tmp_path / "photos").code == 0
    ran = run("release", "--check", tmp_path / "dist", "--against", tmp_path / "v3")
    assert ran.code == 0, ran.err


def snippets(card):
    return re.findall("```python\n(.*?)```", card, re.S)


@pytest.mark.parametrize("timms", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_cards_examples_run(made, demo_folder, tmp_path, run, timms, timm, monkeypatch, capsys):
    """As they stand, one after the other, in the release's folder."""
    image = pytest.importorskip("PIL.Image")
    folder = made
    if not timms:
        mapping = tmp_path / "m.yaml"
        mapping.write_text("base: small_075.yaml\nvariant: mine\ntimm: null\n")
        folder = tmp_path / "dist"
        ran = run(
            *("release", demo_folder, "--mapping", mapping, "--out", folder),
            *("--reference", demo_folder / "expected.npz"),
        )
        assert ran.code == 0, ran.err
    card = (folder / "README.md").read_text()
    assert "..." not in card.replace("torch.save(model.state_dict(), ...)", "")
    assert "@inproceedings{howard2019searching" in card
    code = "\n".join(snippets(card))
    assert code.count("model =") == 3
    image.new("RGB", (300, 200), "teal").save(tmp_path / "photo.jpg")
    shown = "\nprint(classes.shape, [m.shape[1] for m in maps], embedding.shape, len(state_dict))"
    code = code.replace("photo.jpg", str(tmp_path / "photo.jpg")) + shown
    monkeypatch.chdir(folder)
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([1, 5]) [16, 16, 24, 40, 432] torch.Size([1, 1024]) 244\n"


def test_tflite_for_a_record_that_is_not_square(run, demo_folder, tmp_path):
    pytest.importorskip("ai_edge_litert")
    options = ("--reference", demo_folder / "expected.npz", "--tflite")
    ran = run("release", demo_folder, "--out", tmp_path / "dist", *options)
    assert (ran.code, "tflite      logits within" in ran.out) == (0, True), ran.err
