"""Mapping files of a few bytes that ask for gigabytes: refused from the table, before anything is made."""

import resource
import shutil
import time

import pytest

from porter.network.names import fill

SMALL = "base: small_075.yaml\n"


def names(block="", module="", rule=""):
    lines = [f'block: {{first: "{block}", others: "{block}"}}'] if block else []
    lines += [f'module: "{module}"'] if module else []
    lines += [f'names: {{Conv: "{rule}"}}'] if rule else []
    return SMALL + "\n".join(lines)


HUNGRY = {
    "a width": (names("c{index:>3000000000}"), "other braces"),
    "zeros": (names(module="blocks.{stage:03000000000d}.{position}"), "other braces"),
    "an attribute": (names(module="blocks.{stage.foo}.{position}"), "other braces"),
    "a position": (names("{0.__class__}"), "other braces"),
    "a number": (names("{0}"), "unknown placeholder"),
    "a lone brace": (names("{"), "other braces"),
    "a width in a rule": (names(rule="{last_conv:>2500000000}"), "`from` of no rule|other braces"),
    "a width in an output": (SMALL + 'outputs: {stem: {"{last_conv:>2500000000}": [a]}}', "other braces"),
    "an unknown word in an output": (SMALL + "outputs: {stem: {'{nowhere}': [a]}}", "unknown placeholder"),
    "a name a thousand times": (names(block="{index}" * 140 + "x" * 1000), "longer|1000 characters"),
    "a scope of a megabyte": (SMALL + "scope: " + "a" * 900_000, "1000 characters"),
    "a key of half a megabyte": (SMALL + "? " + "k" * 1100 + "\n: {a: 1}", "1000 characters|not readable"),
    "aliases": (SMALL + "a: &a " + "x" * 500_000 + "\nb: [" + "*a," * 19_000 + "]", "1000 characters"),
    "many bases": ("base: [" + "small_075.yaml, " * 40 + "]", "more than 32 files"),
    "many values": (SMALL + "b: [" + "1," * 400_000 + "]", "more than 20000 values"),
    "a multiplier": (SMALL + "network: {multiplier: 1000}", "weights; at most"),
    "a stem": (SMALL + "network: {stem: {out: 65536}}", "weights; at most|values for 1 image(s)"),
    "a kernel": (SMALL + "network: {stem: {kernel: 65535}}", "network.stem.kernel"),
    "an image": (SMALL + "input: {size: 65536}", "input.crop"),
    "a large image": (SMALL + "input: {size: 3500}", "values for 1 image(s)"),
    "a crop": (SMALL + "input: {crop: 0.0001}", "input.crop"),
    "a stride of one": (SMALL + "input: {size: 2048}\nnetwork: {stem: {stride: 1}}", "values for 1 image(s)"),
    "rules for ever": (SMALL + "rules: {inverted_residual: [" + "squeeze_excite, " * 15_000 + "]}", "more often than"),
}


@pytest.mark.parametrize("case", HUNGRY)
def test_what_a_mapping_file_asks_for(run, tmp_path, demo_folder, case):
    text, words = HUNGRY[case]
    path = tmp_path / "m.yaml"
    path.write_text(text)
    run("convert", demo_folder, "--dry-run")  # imports and tables are in memory then
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    ran = run("convert", demo_folder, "--mapping", path, "-o", tmp_path / "a.pth")
    assert ran.code == 2, ran.err
    assert any(word in ran.err for word in words.split("|")), ran.err
    assert ran.err.count("\n") == 1
    assert time.process_time() - start < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 4 * len(text) / (1 << 20) + 64


def test_placeholders_are_plain():
    assert fill("a_{index}/b{next}", {"index": 3, "next": "x"}) == "a_3/bx"
    for template in ("{index!r}", "{index[0]}", "{}", "{{index}}", "}", "{index:5}"):
        with pytest.raises(ValueError, match="braces"):
            fill(template, {"index": 3})


@pytest.fixture(scope="module")
def own_release(tmp_path_factory, demo_folder):
    """A release with a mapping file of its own."""
    from porter.releases.publish import release

    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.yaml").write_text(SMALL + "variant: mine\n")
    release(demo_folder, folder / "dist", mapping=folder / "mine.yaml", reference=str(demo_folder / "expected.npz"))
    return folder / "dist"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("multiplier: 0.75", "multiplier: 1000"),
        ("multiplier: 0.75", "multiplier: 3.0"),  # computable, but not these weights
        ("size: 224", "size: 65536"),
        ("crop: 0.875", "crop: 0.0001"),
    ],
)
def test_a_release_whose_table_does_not_fit_its_weights(run, own_release, tmp_path, old, new):
    from PIL import Image

    folder = shutil.copytree(own_release, tmp_path / "dist")
    text = (folder / "mapping.yaml").read_text()
    assert old in text
    (folder / "mapping.yaml").write_text(text.replace(old, new))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for command in (
        ["predict", folder, tmp_path / "a.png"],
        ["export-tf", folder, tmp_path / "tf"],
    ):
        ran = run(*command)
        assert ran.code == 2, ran.err
        assert ran.err.count("\n") == 1 or "problems" in ran.err


def test_a_release_of_one_channel(run, own_release, tmp_path):
    from PIL import Image

    folder = shutil.copytree(own_release, tmp_path / "dist")
    text = (folder / "mapping.yaml").read_text()
    changed = text.replace("channels: 3", "channels: 1").replace("  - 0.5\n  - 0.5\n  - 0.5\n", "  - 0.5\n")
    assert changed.count("- 0.5") == 2, text
    (folder / "mapping.yaml").write_text(changed)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    ran = run("predict", folder, tmp_path / "a.png")
    assert ran.code == 2
    assert "conv_stem.weight: shape [16, 3, 3, 3], the network has [16, 1, 3, 3]" in ran.err


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("mapping.yaml", "std:\n  - 0.5", "std:\n  - 0.25"),
        ("mapping.yaml", "mean:\n  - 0.5", "mean:\n  - 0.25"),
        ("mapping.yaml", "crop: 0.875", "crop: 0.75"),
        ("mapping.yaml", "size: 224", "size: 192"),
        ("config.json", '"crop_pct": 0.875', '"crop_pct": 0.75'),
    ],
)
def test_what_a_port_computes_is_under_its_digest(run, own_release, tmp_path, name, old, new):
    from porter.releases.folder import write_checksums

    folder = shutil.copytree(own_release, tmp_path / "dist")
    assert run("release", "--check", folder).code == 0
    text = (folder / name).read_text()
    assert old in text, text
    (folder / name).write_text(text.replace(old, new))
    (folder / "SHA256SUMS").unlink()
    write_checksums(folder)
    ran = run("release", "--check", folder)
    assert ran.code == 2
    assert f"{name}: " in ran.err
