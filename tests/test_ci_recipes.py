"""The GitHub action and the hooks of docs/ci.md, run as their users would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from porter.exports.convert import convert
from porter.parity.demo import write_demo_checkpoint

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / ".github/actions/verify/action.yml").read_text())
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def act(folder, **inputs):
    """Run the action's steps but the installation, as GitHub's runner does: ``bash -eo pipefail``, inputs filled in."""
    given = {name: spec["default"] for name, spec in ACTION["inputs"].items()} | inputs
    assert given.keys() == ACTION["inputs"].keys()
    [step] = [step for step in ACTION["runs"]["steps"] if step["name"] == "Verify"]
    environment = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: str(given[m[1]]), value)
        for name, value in step["env"].items()
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    environment |= {"PATH": PATH, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's repository: a checkpoint, and the artifact made from it."""
    folder = tmp_path_factory.mktemp("project")
    convert(write_demo_checkpoint(folder), folder / "good.pth")
    return folder


@pytest.fixture(scope="module")
def whole_project(project):
    """The repository with other artifacts, and a release."""
    folder, source = project, project / "small_075_demo"
    convert(source, folder / "slim.safetensors", layout="slim")
    convert(write_demo_checkpoint(folder, "small_100"), folder / "other.pth")
    command = ["mnv3-port", "release", source, "--out", folder / "release", "--reference", source / "expected.npz"]
    subprocess.run([*map(str, command)], check=True, env=os.environ | {"PATH": PATH})
    return folder


@pytest.mark.slow
def test_action(whole_project):
    project = whole_project
    recorded = "small_075_demo/expected.npz"
    given = {"checkpoint": "small_075_demo", "reference": recorded}
    for artifact in ("good.pth", "slim.safetensors", ""):
        ran = act(project, artifact=artifact, **given)
        assert ran.returncode == 0, ran.stderr
    assert "<testsuite" in (project / "parity/parity.xml").read_text()
    assert "Parity</span>" in (project / "parity/parity.html").read_text()
    assert act(project, artifact="other.pth", **given).returncode == 2
    assert act(project, artifact="good.pth", variant="large_100", **given).returncode == 2
    shutil.rmtree(project / "parity")
    assert act(project, artifact="release").returncode == 0
    assert "<testsuite" in (project / "parity/parity.xml").read_text()
    assert "### Parity: small" in (project / "parity/parity.md").read_text()
    assert "### Parity: small" in (project / "summary.md").read_text()  # GitHub's page of the run


def test_action_fails_the_build(project, tmp_path):
    from porter.artifacts.artifact import load_artifact, save_artifact

    artifact = load_artifact(project / "good.pth")
    artifact.tensors["conv_stem.weight"] *= 1.01  # which is explained at once
    save_artifact(project / "drifted.pth", artifact, force=True)
    ran = act(project, checkpoint="small_075_demo", artifact="drifted.pth", reference="small_075_demo/expected.npz")
    assert ran.returncode == 1
    assert "<failure" in (project / "parity/parity.xml").read_text()


@pytest.mark.slow
def test_hooks(whole_project, tmp_path):
    """The pre-commit hook with the arguments of docs/ci.md, and the plain one."""
    guide = (ROOT / "docs/ci.md").read_text()
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    config = yaml.safe_load(re.search(r"```yaml\n(repos:.*?)```", guide, re.S)[1])
    [used] = config["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    plain = re.search(r"```sh\n#!/bin/sh\n(.*?)```", guide, re.S)[1]
    release = Path(shutil.copytree(whole_project / "release", tmp_path / "release"))
    words = " ".join(hook["args"])  # pre-commit takes these where a configuration has none
    for command in (f"{hook['entry']} {' '.join(used['args'])}", f"{hook['entry']} {words}", plain):
        for expected in (0, 2):
            ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PATH": PATH})
            assert ran.returncode == expected
            (release / "README.md").write_text("changed")
        shutil.copy(whole_project / "release" / "README.md", release)
