"""What `pip install` gives: a wheel in an empty environment, and the README's commands and lines run from it.

The slow tests here are a step of their own in .ci/run (`make test-wheel`).
"""

import functools
import http.server
import os
import re
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import SHARED
from consoles import prints, sessions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RELEASED = "v3-small_224_0.75_float"  # the tarball of the README, and the folder in it


def block(heading: str, language: str) -> str:
    """The code block below ``heading`` in the README."""
    return re.search(rf"^## {heading}\n\n```{language}\n(.*?)^```", README, re.S | re.M)[1]


@pytest.fixture(scope="module")
def shell(installed, tmp_path_factory):
    """Run lines of bash in a working folder where a new user of the wheel would be; gives standard output."""
    work = tmp_path_factory.mktemp("work")

    def shell(line: str) -> str:
        ran = subprocess.run(["bash", "-ec", line], cwd=work, env=installed, capture_output=True, text=True)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    place = Path(installed["PATH"].partition(os.pathsep)[0]).parent
    assert Path(shell("python -c 'import porter; print(porter.__file__)'")).is_relative_to(place)
    shell(
        "mkdir -p photos/n01491361 && python -c '"
        'from PIL import Image; Image.linear_gradient("L").convert("RGB").save("photo.jpg")'
        "' && cp photo.jpg photos/n01491361/"
    )
    return shell


@pytest.fixture(scope="module")
def store(tarball_folder, tmp_path_factory):
    """The address of a store with a tarball like a released one."""
    folder = tmp_path_factory.mktemp("store")
    with tarfile.open(folder / f"{RELEASED}.tgz", "w:gz") as archive:
        archive.add(tarball_folder, RELEASED)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_file_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        (Path(package) / path.relative_to(ROOT / folder)).as_posix()
        for folder, package in (("porter", "porter"), ("mappings", "porter/variants"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == ours


@pytest.mark.slow
def test_what_readme_shows_is_printed(shell, store):
    """Its commands, one after the other; only the tarball comes from another address."""
    real = SHARED.parent / "real"
    tried = [session for session in sessions("README.md") if session[0].startswith(("mnv3-port", "tar"))]
    assert len(tried) == 6
    for line, shown in tried:
        line = line.replace("download", f"download --url {store}/{RELEASED}.tgz", 1)
        if "small_100.pth" in line:  # trained weights and a photo, which README does not make
            if not real.is_dir():
                continue
            shell(f"mnv3-port convert {real}/v3-small_224_1.0_float -o small_100.pth")
            shell(f"cp {real}/images/n01491361_tiger_shark.JPEG photo.jpg")
        out = shell(line)
        assert not shown or prints(shown, out), f"{line}\n{out}"
    shell("mnv3-port release --check dist")


@pytest.mark.slow
def test_the_five_lines_of_the_readme(shell, store):
    shell(f"mnv3-port convert {store}/{RELEASED}.tgz -o small_075.pth --force")
    code = f"import torch\nimages = torch.zeros(1, 3, 224, 224)\n{block('Five lines of Python', 'python')}"
    shell(f"python - <<'EOF'\n{code}\nassert logits.shape == (1, 1000)\nfast(images)\nEOF")


@pytest.mark.slow
def test_pages_and_accuracy(shell):
    """What else opens files beside the code: the demo, every kind of page, the classes' names."""
    shell("mnv3-port demo --out demo")
    shell("mnv3-port verify demo/small_075_demo demo/small_075.pth --html parity.html")
    shell("mnv3-port predict demo/small_075.pth photo.jpg --html predictions.html")
    shell("mnv3-port evaluate demo/small_075.pth photos --workers 0 --html accuracy.html")
