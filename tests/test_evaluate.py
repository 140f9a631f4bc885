"""``evaluate``: labels, ranks, intervals, the same result for any number of processes, and going on after a stop."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from json_schemas import check_json

import porter
from porter.errors import PorterError
from porter.evaluation import run as running
from porter.evaluation.classifier import open_classifier
from porter.evaluation.dataset import find_labelled
from porter.evaluation.result import share
from porter.evaluation.run import Settings, evaluate_classifier, rank
from porter.photos.images import normalized, read_image, resized

REAL = SHARED.parent / "real"
IDS = ["n01440764", "n01443537", "n03995372", "n15075141"]
NUMBERS = [0, 1, 740, 999]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Class folders: 4 classes, 22 images."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(22):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        path = folder / IDS[number % 4] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        image.fromarray(pixels).resize((300, 260)).save(path)
    return folder


def test_labels_from_folders(photos):
    found = find_labelled(photos)
    assert len(found) == 22
    assert [p.label for p in found] == sorted(p.label for p in found)
    assert {p.path.parent.name: p.label for p in found} == dict(zip(IDS, NUMBERS, strict=True))


def test_labels_from_names_and_csv(tmp_path):
    for name in ("n01440764_tench.JPEG", "ILSVRC2012_val_00000002_n15075141.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.label for p in find_labelled(tmp_path)] == [999, 0]
    (tmp_path / "val_3.JPEG").touch()
    with pytest.raises(PorterError, match=r"val_3\.JPEG: neither its folder nor its name .* give --labels"):
        find_labelled(tmp_path)
    rows = "ImageId,PredictionString\nval_3,n03995372 85 1 499 272\nn01440764_tench.JPEG,7\n"
    (tmp_path / "labels.csv").write_text(rows)
    assert [(p.path.name, p.label) for p in find_labelled(tmp_path, tmp_path / "labels.csv")] == [
        ("val_3.JPEG", 740),
        ("n01440764_tench.JPEG", 7),
    ]
    for row, message in (
        ("val_9,7", "line 4: .*val_9: no such image"),
        ("val_3,cat", "line 4: .* is not `file,label`"),
    ):
        (tmp_path / "labels.csv").write_text(rows + row)
        with pytest.raises(PorterError, match=message):
            find_labelled(tmp_path, tmp_path / "labels.csv")


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_rank(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert rank(np.array(logits, np.float32), label) == order.index(label)


def test_nan_is_never_right():
    logits = np.full(10, np.nan, np.float32)
    assert rank(logits, 3) == 10
    logits[3] = 1
    assert rank(logits, 3) == 9


def test_interval():
    """Newcombe 1998, table I: 81 of 263."""
    found = share(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert share(0, 20).low < 1e-15
    assert share(20, 20).high > 1 - 1e-15


def test_counts_are_those_of_the_model(photos, demo_folder, run, tmp_path):
    """The same images one by one, without any of the machinery."""
    model = porter.create_model("small_075", demo_folder)
    import torch

    first = fifth = 0
    for photo in find_labelled(photos):
        pixels = normalized(resized(read_image(photo.path), (224, 224), 0.875, "tf"), [0.5] * 3, [0.5] * 3)
        with torch.no_grad():
            order = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].argsort(descending=True).tolist()
        first += order[0] == photo.label
        fifth += photo.label in order[:5]
    table = tmp_path / "classes.csv"
    ran = run("evaluate", demo_folder, photos, "--preprocess", "tf", "--batch", 5, "--json", "--per-class", table)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    check_json(found, "evaluate")
    [result] = found["results"]
    assert (found["images"], result["top1"]["hits"], result["top5"]["hits"]) == (22, first, fifth)
    rows = list(csv.DictReader(table.open()))
    assert [row["wordnet"] for row in rows] == IDS
    assert sum(int(row["images"]) for row in rows) == 22
    assert sum(int(row["top5"]) for row in rows) == fifth


def test_comparison_with_itself(photos, demo_folder, run, tmp_path):
    run("convert", demo_folder, "-o", tmp_path / "a.pth")
    ran = run("evaluate", tmp_path / "a.pth", photos, "--compare", demo_folder)
    assert ran.code == 0, ran.err
    assert "22 of 22 images have the same top-1" in ran.out
    assert "+0.00 +- 0.00" in ran.out


@pytest.mark.tensorflow
def test_comparison_with_tensorflow(photos, shared, run, tmp_path):
    source = shared / "v3-small_224_0.75_float"
    shutil.copytree(photos / IDS[0], tmp_path / IDS[0])
    ran = run("evaluate", source, tmp_path, "--compare", f"tf:{source}")
    assert ran.code == 0, ran.err
    assert "(frozen graph (v3-small_224_0.75_float.pb))" in ran.out
    assert "6 of 6 images have the same top-1" in ran.out


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "-m", "porter", "evaluate", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.tensorflow
def test_pixels_for_a_file_that_scales_them_itself(tmp_path):
    """The port scales them, and TensorFlow gets whole pixels: also where `--preprocess tf` gives numbers from 0 to 1."""
    keras = pytest.importorskip("tensorflow").keras
    keras.utils.set_random_seed(0)
    size = {"input_shape": (64, 64, 3), "minimalistic": True, "classes": 10}
    model = keras.applications.MobileNetV3Small(weights=None, **size)
    for layer in model.layers:
        if "BatchNorm" in type(layer).__name__:
            layer.gamma.assign(layer.gamma * 2.5)  # else half of a pixel's value changes nothing
    model.save(tmp_path / "m.keras")
    ours, theirs = (open_classifier(f"{kind}{tmp_path / 'm.keras'}") for kind in ("", "tf:"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = ours.logits(pixels)
    assert np.abs(ours.logits(pixels // 2) - expected).max() > 0.1 * np.abs(expected).max()
    for images in (pixels, (pixels / 255).astype(np.float32)):
        for one in (ours, theirs):
            assert np.abs(one.logits(images) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 3])
def test_any_number_of_processes(photos, demo_folder, tmp_path, most):
    """22 images in batches of 3: eight batches, the last one of one image."""
    results = {}
    for processes in (1, most):
        table = tmp_path / f"{processes}.csv"
        found = torchrun(processes, demo_folder, photos, "--batch", 3, "--json", "--workers", 0, "--per-class", table)
        run = found.pop("run")
        assert (run["images"], run["processes"]) == (22, processes)
        results[processes] = found, table.read_text()
    assert results[1] == results[most]


def test_goes_on_after_an_interruption(photos, demo_folder, tmp_path, monkeypatch):
    whole = evaluate_classifier(str(demo_folder), photos, settings=Settings(batch=4, workers=0))

    def stop(done, total):
        if done >= 12:
            raise KeyboardInterrupt

    journal = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        evaluate_classifier(
            str(demo_folder), photos, settings=Settings(batch=4, workers=0, resume=journal), progress=stop
        )
    with (journal / "0.jsonl").open("a") as file:
        file.write("\n[5, [[0, [1")  # as a power cut leaves it
    seen = []
    monkeypatch.setattr(running, "read_image", lambda path: seen.append(path) or read_image(path))
    rest = evaluate_classifier(str(demo_folder), photos, settings=Settings(batch=4, workers=0, resume=journal))
    assert len(seen) == rest.measured == 10
    assert rest.seen == whole.seen
    again = evaluate_classifier(str(demo_folder), photos, settings=Settings(batch=4, workers=0, resume=journal))
    assert (again.measured, again.seen) == (0, whole.seen)
    with pytest.raises(PorterError, match=r"is of another evaluation \(batch differ\)"):
        evaluate_classifier(str(demo_folder), photos, settings=Settings(batch=5, workers=0, resume=journal))
    with pytest.raises(PorterError, match="holds other files"):
        evaluate_classifier(str(demo_folder), photos, settings=Settings(batch=4, workers=0, resume=photos))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image(photos, demo_folder, tmp_path, run, workers):
    folder = tmp_path / IDS[0]
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"no image")
    ran = run("evaluate", demo_folder, tmp_path, "--workers", workers)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "bad.jpg: not a readable image" in ran.err


def test_bad_input(photos, demo_folder, tmp_path, run, make_checkpoint):
    assert "no such folder of images" in run("evaluate", demo_folder, tmp_path / "none").err
    assert "no images" in run("evaluate", demo_folder, tmp_path).err
    ran = run("evaluate", make_checkpoint(classes=7), photos)
    assert ran.code == 2
    assert "class 740; " in ran.err


def test_no_such_timm_model(timm, photos, run):
    assert "timm cannot make it (Unknown model" in run("evaluate", "timm:no_such_model", photos).err


@pytest.mark.slow
def test_trained_classifier_beside_its_interpreter(run):
    """Dequantised weights against TFLite's own run, on real photos."""
    if not REAL.is_dir():
        pytest.skip(f"no real files at {REAL} (set MNV3_CHECKPOINTS)")
    pytest.importorskip("ai_edge_litert")
    source = REAL / "v3-small_224_1.0_uint8.tflite"
    ran = run("evaluate", source, REAL / "images", "--compare", f"tf:{source}", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    check_json(found, "evaluate")
    assert found["images"] == 125
    ours, theirs = found["results"]
    assert ours["top1"]["share"] > 0.7
    assert theirs["top1"]["share"] > 0.7
    assert min(ours["top5"]["share"], theirs["top5"]["share"]) > 0.9


def test_unreadable_images_are_left_out_and_named(photos, demo_folder, run, tmp_path):
    whole = json.loads(run("evaluate", demo_folder, photos, "--json", "--workers", 0).out)
    photos = shutil.copytree(photos, tmp_path / "photos")
    bad = next(photos.glob("*/")) / "bad.png"
    bad.write_bytes(b"no image")
    options = ("--workers", 0, "--batch", 4)
    ran = run("evaluate", demo_folder, photos, *options)
    assert (ran.code, "bad.png: not a readable image" in ran.err) == (2, True)
    ran = run("evaluate", demo_folder, photos, *options, "--skip-unreadable", "--resume", tmp_path / "j", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    check_json(found, "evaluate")
    assert found["skipped"] == [str(bad)]
    assert found["results"] == whole["results"]
    ran = run("evaluate", demo_folder, photos, *options, "--skip-unreadable", "--resume", tmp_path / "j")
    assert "skipped    1 image that could not be read" in ran.out
    ran = run("evaluate", demo_folder, photos, *options, "--resume", tmp_path / "j")
    assert (ran.code, "bad.png: could not be read" in ran.err) == (2, True)


def test_class_names_as_folders(demo_folder, make_checkpoint, run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("rose", "tulip"):
        (tmp_path / "data" / name).mkdir(parents=True)
        image.new("RGB", (40, 40), "teal").save(tmp_path / "data" / name / "a.png")
    (tmp_path / "names.txt").write_text("lily\nrose\ntulip\n")
    source = make_checkpoint(classes=3)
    options = ("--class-names", tmp_path / "names.txt", "--workers", 0)
    ran = run("evaluate", source, tmp_path / "data", *options, "--per-class", tmp_path / "c.csv")
    assert ran.code == 0, ran.err
    assert [line.split(",")[:4] for line in (tmp_path / "c.csv").read_text().splitlines()[1:]] == [
        ["1", "", "rose", "1"],
        ["2", "", "tulip", "1"],
    ]
    (tmp_path / "l.csv").write_text("rose/a.png,tulip\ntulip/a.png,rose\n")
    assert run("evaluate", source, tmp_path / "data", *options, "--labels", tmp_path / "l.csv").code == 0


def test_report(photos, demo_folder, run, tmp_path):
    """Two classifiers side by side: the same weights, and the raw ones of another network."""
    run("convert", demo_folder, "-o", tmp_path / "a.pth")
    options = ("--workers", 0, "--html", tmp_path / "e.html")
    ran = run("evaluate", demo_folder, photos, *options, "--compare", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    page = (tmp_path / "e.html").read_text()
    for words in ("% top-1", "Most frequent confusions", "Worst classes", "both guess the", "95 %"):
        assert words in page, words
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
