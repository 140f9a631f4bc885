"""``predict`` and ``evaluate`` of all three kinds of port: each kind with each option, against the network itself."""

import base64
import functools
import io
import json
import re

import numpy as np
import pytest
import torch
from random_networks import checkpoint_with_head
from tags import Tags

import porter
from porter.artifacts.artifact import load_artifact, save_artifact
from porter.exports.runtime import boxes_session
from porter.photos.images import normalized, resized
from porter.photos.labels import imagenet_labels
from porter.prediction.boxes import Box
from porter.prediction.masks import palette

PIL = pytest.importorskip("PIL.Image")
KINDS = ("classes", "masks", "boxes")
NAMES = {"masks": ["sky", "road", "<b>tree", "sea"], "boxes": ["nothing", "cat", "<b>dog", "cow", "hen", "bee"]}
HALF = [0.5] * 3


@pytest.fixture(scope="module")
def ports(tmp_path_factory, demo_folder):
    """Kind -> an artifact of random weights. The segmenter's biases are such that its classes are about as frequent."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("ports")
    sources = {"classes": demo_folder, "masks": checkpoint_with_head("lraspp_small", tmp_path_factory, classes=4)}
    sources["boxes"] = checkpoint_with_head("ssdlite_small", tmp_path_factory)
    ports = {kind: porter.convert(source, folder / f"{kind}.pth")[0] for kind, source in sources.items()}
    model = porter.create_model(ports["masks"])
    with torch.no_grad():
        logits = model(torch.from_numpy(normalized(pixels(0), HALF, HALF)).permute(2, 0, 1)[None])[0]
    artifact = load_artifact(ports["masks"])
    artifact.arrays["classifier.low_classifier.bias"] -= logits.mean((1, 2)).numpy()
    save_artifact(ports["masks"], artifact, force=True)
    return ports


def pixels(seed):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(PIL.fromarray(small).resize((166, 122), PIL.Resampling.NEAREST))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        PIL.fromarray(pixels(seed)).save(folder / f"{name}.png")
    return folder


def outputs(port, image):
    with torch.no_grad():
        return porter.create_model(port)(torch.from_numpy(normalized(image, HALF, HALF)).permute(2, 0, 1)[None])


@functools.cache
def expected(kind, port, seed, least=0.3):
    """(class, value) of everything that is found, and the mask or the boxes."""
    photo = PIL.fromarray(pixels(seed))
    if kind == "classes":
        best = outputs(port, resized(photo, (224, 224), 0.875, "card"))[0].softmax(0).topk(5)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True)), None
    if kind == "masks":
        mask = outputs(port, pixels(seed))[0].argmax(0).numpy().astype(np.uint8)
        counts = np.bincount(mask.ravel())
        return sorted([(n, c / mask.size) for n, c in enumerate(counts) if c], key=lambda one: -one[1]), mask
    given = dict(zip(("encodings", "logits"), outputs(port, resized(photo, (320, 320), 1.0, "tf")), strict=True))
    session = boxes_session(porter.create_model(port).network, (320, 320))  # tests/test_detection.py has its oracle
    found = session.run(None, {name: value.numpy() for name, value in given.items()})
    found = [Box(*box, number, score) for box, number, score in zip(*(one.tolist() for one in found), strict=True)]
    found = [box for box in found if box.score >= least]
    return [(box.number, box.score) for box in found], found


def printed(text):
    """Image -> (class, percents, what follows) of each line below it."""
    image, found = "", {}
    for line in text.splitlines():
        if line.startswith("  "):
            value, number, *rest = line.split(maxsplit=2)
            found[image].append((int(number), value, *rest))
        else:
            image = line
            found[image] = []
    return found


def same(rows, expected):
    assert [row[0] for row in rows] == [number for number, _ in expected]
    assert [float(row[1].rstrip("%")) for row in rows] == pytest.approx([100 * v for _, v in expected], abs=0.02)


@pytest.fixture(scope="module")
def least(ports):
    """A score that some boxes of the photos have, and others do not."""
    scores = sorted(value for seed in (0, 1) for _, value in expected("boxes", ports["boxes"], seed, 0)[0])
    return (scores[len(scores) // 2] + scores[len(scores) // 2 - 1]) / 2


def options(kind, least):
    return ("--least", least) if kind == "boxes" else ()


def test_the_ports_of_these_tests_find_several_classes(ports, least):
    assert len(expected("masks", ports["masks"], 0)[0]) >= 3
    assert 1 <= len(expected("boxes", ports["boxes"], 0, least)[0]) < len(expected("boxes", ports["boxes"], 0, 0)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_plain(kind, ports, photos, run, least):
    ran = run("predict", ports[kind], photos, *options(kind, least))
    assert (ran.code, ran.err) == (0, "")
    found = printed(ran.out)
    assert list(found) == [str(photos / "one.png"), str(photos / "two.png")]
    for seed, rows in enumerate(found.values()):
        wanted, boxes = expected(kind, ports[kind], seed, least)
        same(rows, wanted)
        if kind == "classes":
            label = imagenet_labels(1000)[wanted[0][0]]
            assert rows[0][2] == f"{label.wordnet}  {label.names}"
        if kind == "boxes":
            box = boxes[0]
            place = [round(side) for side in (box.left * 166, box.top * 122, box.right * 166, box.bottom * 122)]
            assert rows[0][2].split() == "{},{} to {},{}".format(*place).split()
    assert sorted(photos.parent.rglob("*")) == sorted([photos, photos / "one.png", photos / "two.png"])


@pytest.mark.parametrize("kind", KINDS)
def test_output(kind, ports, photos, run, tmp_path, least):
    out = tmp_path / "below" / "out"
    ran = run("predict", ports[kind], photos, "-o", out, *options(kind, least))
    if kind == "classes":
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"Error: -o has no meaning here: {ports[kind]} is a classifier\n"
        assert not out.parent.exists()
        return
    assert (ran.code, ran.err) == (0, "")
    files = ["one.png", "two.png"] if kind == "masks" else ["one.json", "one.png", "two.json", "two.png"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert ran.out.startswith(f"{photos / 'one.png'} -> {out / 'one.png'}")
    wanted, whole = expected(kind, ports[kind], 0, least)
    picture = PIL.open(out / "one.png")
    if kind == "masks":
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), whole)
        assert np.array_equal(np.asarray(picture.convert("RGB")), palette()[whole])
    else:
        changed = (np.asarray(picture) != pixels(0)).any(-1)
        box = whole[0]
        across, down = int((box.left + box.right) / 2 * 166), min(121, round(box.bottom * 122))
        assert tuple(np.asarray(picture)[down, across]) == tuple(palette()[box.number])
        assert changed.any()
        found = json.loads((out / "one.json").read_text())
        assert [one["number"] for one in found["boxes"]] == [number for number, _ in wanted]
    before = {path: path.read_bytes() for path in out.iterdir()}
    (out / "one.png").unlink()
    ran = run("predict", ports[kind], photos, "-o", out, *options(kind, least))
    assert ran.code == 2
    assert "exists already; choose another output or use --force" in ran.err
    assert not (out / "one.png").exists()  # checked before any work
    assert run("predict", ports[kind], photos, "-o", out, "--force", *options(kind, least)).code == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("kind", "written"), [*((kind, False) for kind in KINDS), ("masks", True), ("boxes", True)])
def test_json(kind, written, ports, photos, run, tmp_path, least):
    (tmp_path / "names.txt").write_text("\n".join(NAMES.get(kind, [f"thing {n}" for n in range(1000)])))
    named = ("--class-names", tmp_path / "names.txt", *(("-o", tmp_path / "out") if written else ()))
    ran = run("predict", ports[kind], photos, "--json", *named, *options(kind, least))
    assert (ran.code, ran.err) == (0, "")
    for seed, line in enumerate(ran.out.splitlines()):
        found = json.loads(line)
        stem = ("one", "two")[seed]
        assert found["image"] == str(photos / f"{stem}.png")
        endings = {"masks": [".png"], "boxes": [".png", ".json"]}.get(kind)
        assert found.get("files") == ([str(tmp_path / "out" / f"{stem}{end}") for end in endings] if written else None)
        rows = found["boxes" if kind == "boxes" else "classes"]
        value = {"classes": "probability", "masks": "share", "boxes": "score"}[kind]
        wanted, whole = expected(kind, ports[kind], seed, least)
        assert [row["number"] for row in rows] == [number for number, _ in wanted]
        assert [row[value] for row in rows] == pytest.approx([number for _, number in wanted], rel=1e-4)
        if kind == "classes":
            assert [row["label"]["names"] for row in rows] == [f"thing {row['number']}" for row in rows]
        else:
            assert [row["name"] for row in rows] == [NAMES[kind][row["number"]] for row in rows]
        if kind == "boxes":
            sides = [[row[side] for side in ("top", "left", "bottom", "right")] for row in rows]
            assert np.array(sides) == pytest.approx(np.array([box[:4] for box in whole]), abs=1e-5)
            if written:
                assert (tmp_path / "out" / f"{stem}.json").read_text() == line + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_html(kind, ports, photos, run, tmp_path, least):
    (photos / "two.png").rename(photos / "<img src=x onerror=alert(1)>.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES.get(kind, [f"<b>{n}" for n in range(1000)])))
    page = tmp_path / "page.html"
    named = ("--class-names", tmp_path / "names.txt", "--html", page)
    ran = run("predict", ports[kind], photos, *named, *options(kind, least))
    assert (ran.code, ran.err) == (0, "")
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert all(value.startswith("data:image/png;base64,") for _, name, value in tags.attributes if name == "src")
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == 2
    wanted, whole = expected(kind, ports[kind], 1, least)  # "<" sorts before "o"
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in figures[0]
    shown = re.findall(r'<td class="number">([\d.]+)&nbsp;%', figures[0])
    assert [float(value) for value in shown] == pytest.approx([100 * value for _, value in wanted], abs=0.11)
    names = NAMES.get(kind) or [f"<b>{n}" for n in range(1000)]
    labels = re.findall(r"<tr><td>(?:<span.*?</span> )?(.*?)</td>", figures[0])
    assert labels == [names[number].replace("<", "&lt;").replace(">", "&gt;") for number, _ in wanted]
    data = re.search(r'src="data:image/png;base64,(.*?)"', figures[0])[1]
    picture = np.asarray(PIL.open(io.BytesIO(base64.b64decode(data))))
    if kind == "classes":
        assert np.array_equal(picture, pixels(1))
    elif kind == "masks":
        halves = (pixels(1).astype(int) + palette()[whole]) / 2
        assert np.abs(picture - halves).max() <= 1
    else:
        assert picture.shape == pixels(1).shape
        assert (picture != pixels(1)).any()
    colours = re.findall(r'<span style="color: #(\w{6})">', figures[0])
    assert colours == ([] if kind == "classes" else [bytes(palette()[number]).hex() for number, _ in wanted])


@pytest.mark.parametrize("kind", KINDS)
def test_standard_input(kind, ports, photos, run, tmp_path, least, monkeypatch):
    def piped(data, *more):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return run("predict", ports[kind], "-", *options(kind, least), *more)

    data = (photos / "two.png").read_bytes()
    ran = piped(data, "--html", tmp_path / "page.html")
    assert (ran.code, ran.err) == (0, "")
    [(name, rows)] = printed(ran.out).items()
    assert name == "-"
    same(rows, expected(kind, ports[kind], 1, least)[0])
    assert "<figcaption>standard input</figcaption>" in (tmp_path / "page.html").read_text()
    if kind != "classes":
        assert piped(data, "-o", tmp_path / "piped").code == 0
        assert run("predict", ports[kind], photos, "-o", tmp_path / "named", *options(kind, least)).code == 0
        assert (tmp_path / "piped" / "stdin.png").read_bytes() == (tmp_path / "named" / "two.png").read_bytes()
        assert (tmp_path / "piped" / "stdin.json").exists() == (kind == "boxes")
    ran = piped(b"no image")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error: -: not a readable image")


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images(kind, ports, photos, run, tmp_path, least):
    (photos / "bad.jpg").write_bytes(b"no image")
    written = () if kind == "classes" else ("-o", tmp_path / "out")
    ran = run("predict", ports[kind], photos, *options(kind, least))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"Error: {photos / 'bad.jpg'}: not a readable image")
    skip = ("--skip-unreadable", "--html", tmp_path / "page.html", *options(kind, least))
    ran = run("predict", ports[kind], photos, *skip, *written)
    assert ran.code == 0
    first, second = ran.err.splitlines()
    assert first.startswith(f"skipped: {photos / 'bad.jpg'}: not a readable image")
    assert second == "skipped 1 of 3 images"
    assert len(printed(ran.out)) == (tmp_path / "page.html").read_text().count("<figure>") == 2
    if written:
        assert {path.stem for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    ran = run("predict", ports[kind], photos / "bad.jpg", *skip)
    assert (ran.code, "none of the images could be read" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("command", "kind", "given"),
    [("predict", "classes", ("--least", "0.5"))]
    + [("predict", kind, given) for kind in KINDS[1:] for given in (("--top", 5), ("--preprocess", "card"))]
    + [("predict", "masks", ("--least", "0.3"))]
    + [
        ("evaluate", kind, given)
        for kind in KINDS[1:]
        for given in (("--compare", "x"), ("--preprocess", "tf"), ("--batch", 32), ("--workers", 0), ("--resume", "j"))
    ],
)
def test_options_that_a_kind_would_ignore(ports, photos, run, command, kind, given, monkeypatch):
    """Even where they say what the default says."""
    monkeypatch.chdir(photos.parent)
    ran = run(command, ports[kind], photos, *given)
    what = {"classes": "classifier", "masks": "segmenter", "boxes": "detector"}[kind]
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"Error: {given[0]} has no meaning here: {ports[kind]} is a {what}\n"
    assert not (photos.parent / "j").exists()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_names_that_cannot_be(kind, ports, photos, run, tmp_path):
    (photos / "below").mkdir()
    PIL.fromarray(pixels(3)).save(photos / "below" / "one.png")
    ran = run("predict", ports[kind], photos, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "one.png: two images would have it" in ran.err
    ran = run("predict", ports[kind], photos / "one.png", "-o", photos, "--force")
    assert (ran.code, f"{photos / 'one.png'}: is one of the images" in ran.err) == (2, True)
    ran = run(
        "predict", ports[kind], photos / "one.png", "-o", tmp_path / "out", "--html", tmp_path / "out" / "one.png"
    )
    assert ran.code == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    page = tmp_path / "out" / "one.png"
    ran = run("predict", ports[kind], photos / "one.png", "-o", tmp_path / "out", "--html", page)
    assert (ran.code, f"{page}: is another output" in ran.err) == (2, True)
    assert list((tmp_path / "out").iterdir()) == []
    ran = run("predict", ports[kind], photos / "one.png", "--force")
    assert (ran.code, "--force is for the files of -o" in ran.err) == (2, True)
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    ran = run("predict", ports[kind], photos / "one.png", "--class-names", tmp_path / "names.txt")
    assert (ran.code, "2 class names for" in ran.err) == (2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_no_numbers(kind, ports, photos, run, tmp_path):
    artifact = load_artifact(ports[kind])
    stem = next(iter(artifact.arrays))
    artifact.arrays[stem] = np.full_like(artifact.arrays[stem], np.nan)
    save_artifact(tmp_path / "nan.pth", artifact)
    ran = run("predict", tmp_path / "nan.pth", photos)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"Error: {tmp_path / 'nan.pth'}: its outputs are NaN or infinite; are its weights finite?\n"
