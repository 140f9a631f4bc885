"""Every command line in the documentation runs, by the wheel and on files made for it, or stands in ELSEWHERE.

What is shown of its output is what it prints. README's commands run in test_wheel.py.
"""

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from consoles import PAGES, prints, sessions

from porter.mapping.files import load_mapping, load_variant
from porter.parity.demo import demo_variables, random_variables
from porter.sources.bundle_writer import write_bundle

RELEASED = "v3-small_224_0.75_float"
# What does not run here, by how it begins, and why
ELSEWHERE = {
    "pip install": "needs the network; test_wheel.py installs the wheel without it",
    "make ": "of the repository, not of its users; .ci/run runs setup, lint, demo, test and test-wheel",
    "mnv3-port download": "needs the network; test_wheel.py downloads from a server of its own",
    "tar xf": "of what was downloaded",
}
COUNTED = {
    "README.md": 11,
    "CONTRIBUTING.md": 8,
    "adding-a-network.md": 2,
    "ci.md": 2,
    "fine-tuning.md": 2,
    "index.md": 20,
    "troubleshooting.md": 15,
}


def runs_here(line):
    return not line.startswith(tuple(ELSEWHERE))


def test_none_is_overlooked():
    """Pages with command lines, and how many; each is one of ours or stands in ELSEWHERE."""
    found = {page: [line for line, _ in sessions(page)] for page in PAGES}
    assert {page: len(commands) for page, commands in found.items() if commands} == COUNTED
    for commands in found.values():
        for line in commands:
            assert line.startswith("mnv3-port ") or not runs_here(line), line
    assert all(any(line.startswith(start) for page in found.values() for line in page) for start in ELSEWHERE)
    for page in set(PAGES) - {"command-line.md"}:  # that is generated
        languages = re.findall(r"^```(\w*)\n.*?^```", PAGES[page].read_text(), re.S | re.M)
        assert set(languages) <= {"console", "sh", "python", "yaml"}, page


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_have_these_options(page):
    """`mnv3-port X --option ...` in a sentence or table: there is such a command, and it takes the options."""
    from porter.commands import cli

    for line in re.findall(r"`mnv3-port ([a-z][^`]*)`", PAGES[page].read_text()):
        name, *words = line.replace("\\|", "|").split()
        if page == "CHANGELOG.md" and name not in cli.commands:
            continue  # of an earlier version
        command = cli.get_command(None, name)
        assert command is not None, line
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match("--?[a-z]", word)} <= options | {"--help"}, line


@pytest.fixture
def workplace(tmp_path, monkeypatch, tarball_folder):
    """A folder with what the pages take for given."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    for name in (RELEASED, "checkpoint"):
        shutil.copytree(tarball_folder, name)
    with tarfile.open(f"{RELEASED}.tgz", "w:gz", compresslevel=1) as archive:
        archive.add(RELEASED)
    for name in ("photos", "labels", "imagenet/val/n01440764", "ckpt", "deeplab", "ssd"):
        Path(name).mkdir(parents=True)
    photo = image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    for name in ("photo.jpg", "photos/one.jpg", "imagenet/val/n01440764/a.jpg"):
        photo.save(name)
    image.new("L", (96, 64)).save("labels/one.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0}
    truth = {"images": [{"id": 1, "file_name": "one.jpg", "height": 64, "width": 96}], "annotations": [box]}
    Path("instances.json").write_text(json.dumps(truth | {"categories": [{"id": 1, "name": "thing"}]}))
    for folder, variant in (("deeplab", "lraspp_small"), ("ssd", "ssdlite_small")):
        write_bundle(Path(folder, "model.ckpt"), random_variables(load_variant(variant), 4))
    # The mapping file as docs/adding-a-network.md writes it
    page = PAGES["adding-a-network.md"].read_text()
    Path("small_050.yaml").write_text(re.search(r"```yaml\n(base: .*?)```", page, re.S)[1])
    write_bundle(Path("ckpt/model-1"), random_variables(load_mapping(Path("small_050.yaml"))))
    return tmp_path


def prepare(page, run):
    """What an earlier page, or a neighbour, has made."""
    if page == "index.md":
        for name in ("a.pth", "b.safetensors"):
            assert run("convert", RELEASED, "-o", name).code == 0
        keras = pytest.importorskip("keras")
        base = keras.applications.MobileNetV3Small((64, 64, 3), alpha=0.75, include_top=False, weights=None)
        top = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(base.output))
        keras.Model(base.input, top).save("my_model.keras")
    if page == "fine-tuning.md":
        assert run("convert", RELEASED, "-o", "small_075.pth").code == 0
        variables = demo_variables("small_075")
        made = ("ExponentialMovingAverage", "RMSProp", "RMSProp_1")
        slots = {f"{name}/{slot}": value**2 for name, value in variables.items() for slot in made if value.ndim}
        Path(RELEASED, "pristine").mkdir()
        write_bundle(Path(RELEASED, "pristine", "model-497500"), variables | slots)
    if page == "troubleshooting.md":
        import tensorflow as tf
        from keras_models import build
        from lite import eight_bits

        for name in ("small_075.pth", "theirs.onnx"):
            assert run("convert", RELEASED, "-o", name).code == 0
        taken = tf.keras.Input((224, 224, 3))
        base = build(tf.keras, classes=5, include_preprocessing=False)
        model = tf.keras.Model(taken, base(tf.keras.layers.Rescaling(1 / 255)(taken)))
        model.save("own.keras")
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        Path("dynamic.tflite").write_bytes(converter.convert())
        Path("int8.tflite").write_bytes(eight_bits(tf, converter, 0, taken="uint8"))
        ports = Path(__file__).with_name("ports.py").read_text()
        given = f"import os\nos.environ.update(VARIANT='small_075', SOURCE={RELEASED!r})\n"
        Path("theirs.py").write_text(f"{given}{ports}\nmodel = symmetric_padding\n")
    if page == "ci.md":
        assert run("convert", "checkpoint", "-o", "artifact.pth").code == 0
        assert run("release", "checkpoint", "--out", "release").code == 0


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("page", sorted(set(COUNTED) - {"README.md", "CONTRIBUTING.md"}))
def test_they_run(page, workplace, run, installed):
    """As they stand there, one after the other, in a shell of somebody who has installed the wheel; Python, too."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    prepare(page, run)
    for line, shown in sessions(page):
        if not runs_here(line):
            continue
        ran = subprocess.run(["bash", "-c", line], env=installed, capture_output=True, text=True)
        assert ran.returncode == shown.startswith("NO PARITY"), f"{line}\n{ran.stdout}{ran.stderr}"
        assert not shown or prints(shown, ran.stdout), f"{line}\n{ran.stdout}"
    if code := "\n".join(re.findall(r"^```python\n(.*?)^```", PAGES[page].read_text(), re.S | re.M)):
        given = "import torch\nimages = torch.zeros(2, 3, 224, 224)\n"
        if "timm" in code:  # here without torchvision
            given += "from porter.models.timm_import import import_timm\nimport_timm()\n"
        ran = subprocess.run(["python", "-c", given + code], env=installed, capture_output=True, text=True)
        assert ran.returncode == 0, f"{code}\n{ran.stderr}"
