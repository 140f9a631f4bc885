"""README and docs: what they name exists, what is generated is current, and the examples run."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import porter

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for link in re.findall(r"\]\(https://(?:github\.com/[\w-]+/mnv3-port/blob|raw\.[^)]*?)/main/([^)#]+)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:porter|tests|scripts|docs|mappings|benchmarks)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"`(porter(?:\.[a-z_0-9]+)+)", text):
        place = ROOT / module.replace(".", "/")
        if not (place.with_suffix(".py").exists() or place.is_dir()):
            import importlib

            parent, _, name = module.rpartition(".")
            assert hasattr(importlib.import_module(parent), name), module
    if page.name != "CONTRIBUTING.md":
        assert "../shared" not in text  # a developer's convenience


def test_the_readme_is_whole_on_pypi():
    """Its links and its picture are addresses, as the page there has no files beside it."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 15
    assert all(link.startswith("https://") for link in links)


def test_owner_and_version_are_those_of_setup_cfg():
    """Addresses of the repository are written out in many files, as README's have to be; one file decides."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    [owner] = re.findall(r"github\.com/([\w-]+)/mnv3-port$", setup["metadata"]["url"])
    patterns = ("*.md", "*.cfg", "*.cff", "*.yml", ".github/**/*.yml", "docs/*.md", "examples/*.yml")
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    address = r"(?:github\.com/|githubusercontent\.com/|uses: )([\w-]+)/mnv3-port|([\w-]+)\.github\.io/mnv3-port"
    found = [one or other for path in files for one, other in re.findall(address, path.read_text())]
    assert len(found) > 25
    assert set(found) == {owner}
    assert f"\nversion: {setup['metadata']['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert porter.__version__ == setup["metadata"]["version"]
    assert not [path for path in files if re.search(r"mnv3-port(\[\w+\])?==\d|mnv3-port/\S*@v?\d", path.read_text())]


def test_the_command_reference_is_current():
    from write_command_reference import PAGE, reference

    assert PAGE.read_text() == reference(), "run scripts/write_command_reference.py"


def test_the_benchmarks_page_is_current():
    from write_benchmarks_page import PAGE, README, page, readme

    assert PAGE.read_text() == page(), "run scripts/write_benchmarks_page.py"
    assert README.read_text() == readme(), "run scripts/write_benchmarks_page.py"


def test_the_readme_shows_the_commands_that_there_are():
    from porter.commands import cli

    shown = set(re.findall(r"^\$ mnv3-port ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert len(shown) >= 5
    assert shown <= set(cli.commands)


@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        pytest.param("port_and_fine_tune.py", ["DEMO"], "fine_tuned.pth: ", marks=pytest.mark.slow),
        pytest.param(*("tensorflow_fine_tune_to_timm.py", ["DEMO"], "small_075, 1000 classes"), marks=pytest.mark.slow),
        pytest.param("keras_with_own_head.py", [], "small_100, 5 classes, images of 96x96", marks=pytest.mark.slow),
        pytest.param("segment_photos.py", ["SEGMENTER", "PHOTOS"], "lraspp_small, ", marks=pytest.mark.slow),
        pytest.param("judge_a_port.py", ["DEMO", "other.pth"], "no parity: ", marks=pytest.mark.slow),
        pytest.param("phone.py", ["DEMO", "PHOTOS/a.png"], "%  class ", marks=pytest.mark.slow),
    ],
)
def test_examples(name, arguments, printed, tmp_path, demo_folder, timm):
    """As their users run them, on checkpoints of untrained weights."""
    from porter.mapping.files import load_variant
    from porter.parity.demo import random_variables
    from porter.sources.bundle_writer import write_bundle

    (tmp_path / "photos").mkdir()
    pytest.importorskip("PIL.Image").new("RGB", (300, 260), "teal").save(tmp_path / "photos" / "a.png")
    if "SEGMENTER" in arguments:
        write_bundle(tmp_path / "seg", random_variables(load_variant("lraspp_small"), 4))
    if "other.pth" in arguments:
        import torch

        changed = porter.create_model("small_075", demo_folder).state_dict()
        torch.save(changed | {"conv_stem.weight": changed["conv_stem.weight"] * 1.01}, tmp_path / "other.pth")
    given = {"DEMO": demo_folder, "SEGMENTER": "seg", "PHOTOS": "photos", "PHOTOS/a.png": "photos/a.png"}
    start = "import runpy, sys; from porter.models.timm_import import import_timm; import_timm()"  # without torchvision
    run = f"{start}; runpy.run_path({str(ROOT / 'examples' / name)!r})"
    command = [sys.executable, "-c", run, *(given.get(word, word) for word in arguments)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert printed in ran.stdout


def test_the_examples_of_public_functions(demo_folder, tmp_path):
    """As doctests; the demo's checkpoint is ``source``."""
    import doctest

    import torch

    import porter

    photos = tmp_path / "photos"
    (photos / "n01440764").mkdir(parents=True)
    pytest.importorskip("PIL.Image").new("RGB", (50, 40), "teal").save(photos / "n01440764" / "a.png")
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in porter.__all__:
        given = {"porter": porter, "torch": torch, "source": demo_folder, "folder": tmp_path, "photos": photos}
        for test in finder.find(getattr(porter, name), name, globs=given):
            runner.run(test)
    assert runner.summarize().attempted >= 16
    assert runner.failures == 0


def test_public_functions_are_documented():
    """On the Python page, with every argument, what comes back and what is raised."""
    import inspect

    import porter

    page = (ROOT / "docs" / "api.md").read_text()
    for name in set(porter.__all__) - {"__version__"}:
        assert f"::: porter.{name}\n" in page, name
        function = getattr(porter, name)
        parameters = () if isinstance(function, type) else inspect.signature(function).parameters
        if len(parameters) > 2:
            text = inspect.getdoc(function)
            said = re.findall(r"^    (\w+): ", text.partition("Args:")[2].partition("Returns:")[0], re.MULTILINE)
            assert sorted(said) == sorted(parameters), name
            assert all(part in text for part in ("Returns:", "Raises:", "Example:")), name


def test_troubleshooting_quotes_what_is_said():
    """The symptoms are in the texts of the program; some are of torch, or printed in two parts."""
    import ast

    texts = []
    for path in (ROOT / "porter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 15
    for quote in quoted:
        if not quote.startswith(("Unexpected key(s)", "cause  ")):
            parts = [part.strip() for part in re.split("…|\\.\\.\\.", re.sub("^not tried +", "", quote))]
            assert any(all(part in text for part in parts) for text in texts), quote


def test_the_notebook():
    """Its cells, one after the other, print what is saved in it."""
    import contextlib
    import io

    cells = json.loads((ROOT / "examples" / "walkthrough.ipynb").read_text())["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec("".join(cell["source"]), space)
            assert "".join(text for output in cell["outputs"] for text in output["text"]) == out.getvalue()
    assert space["verdict"].passed


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "create_model" in (tmp_path / "site" / "api" / "index.html").read_text()
