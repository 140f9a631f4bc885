"""README and docs: what they name exists, what is generated is current, and the examples run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
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
    "name", [pytest.param("port_and_fine_tune.py", marks=pytest.mark.slow), "tensorflow_fine_tune_to_timm.py"]
)
def test_examples(name, tmp_path, demo_folder, timm):
    """As their users run them, on the demo's checkpoint."""
    start = "import runpy, sys; from porter.models.timm_import import import_timm; import_timm()"  # without torchvision
    command = [sys.executable, "-c", f"{start}; runpy.run_path({str(ROOT / 'examples' / name)!r})", demo_folder]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_the_examples_of_public_functions(demo_folder, tmp_path):
    """As doctests; the demo's checkpoint is ``source``."""
    import doctest

    import torch

    import porter

    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in porter.__all__:
        given = {"porter": porter, "torch": torch, "source": demo_folder, "folder": tmp_path}
        for test in finder.find(getattr(porter, name), name, globs=given):
            runner.run(test)
    assert runner.summarize().attempted >= 10
    assert runner.failures == 0


def test_the_notebook():
    """Its cells, one after the other."""
    cells = json.loads((ROOT / "examples" / "walkthrough.ipynb").read_text())["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    assert space["verdict"].passed


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "create_model" in (tmp_path / "site" / "api" / "index.html").read_text()
