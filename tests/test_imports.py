"""What each command imports: start-up time is a matter of what is left out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "tensorflow", "numpy", "rich", "h5py", "yaml", "google.protobuf")


def imported(*arguments) -> set[str]:
    """The heavy modules that ``mnv3-port ARGUMENTS`` has imported when it ends."""
    return imported_by(arguments)


def imported_by(*commands) -> set[str]:
    """Those that several commands have imported, run one after the other in a process."""
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('IMPORTED', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from porter.commands import main\n"
        f"for words in {[[*map(str, words)] for words in commands]!r}:\n"
        "    sys.argv = ['mnv3-port', *words]\n    main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.rpartition("IMPORTED")[2].split())


def test_help():
    assert imported("--help") == set()


@pytest.mark.parametrize("command", ["convert", "verify", "evaluate", "release", "predict"])
def test_help_of_a_command(command):
    assert imported(command, "--help") == set()


def test_tensorflow_is_imported_for_its_own_answers_alone(demo_folder, tmp_path):
    recorded = ("--reference", demo_folder / "expected.npz")
    found = imported_by(
        ["convert", demo_folder, "-o", tmp_path / "a.safetensors"],
        ["verify", demo_folder, *recorded],
        ["release", demo_folder, *recorded, "--out", tmp_path / "dist"],
        ["release", "--check", tmp_path / "dist"],
    )
    assert "tensorflow" not in found


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect(demo_folder, options):
    assert imported("inspect", demo_folder, *options) == {"yaml", "google.protobuf"}


def test_dry_run_needs_no_torch(demo_folder):
    assert imported("convert", demo_folder, "--dry-run") == {"yaml", "google.protobuf"}


def test_convert(demo_folder, tmp_path):
    assert imported("convert", demo_folder, "-o", tmp_path / "a.pth") == {"torch", "numpy", "yaml", "google.protobuf"}


def test_python_api_is_lazy():
    code = (
        "import sys, porter; porter.open_checkpoint; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_test_imports_a_test():
    """What tests share lies in conftest.py and in helpers."""
    for path in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (tests\b|test_)", path.read_text(), re.M), path
