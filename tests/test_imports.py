"""What each command imports: start-up time is a matter of what is left out."""

import re
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "tensorflow", "numpy", "rich", "h5py", "yaml", "google.protobuf")


def imported(*commands) -> list[set[str]]:
    """The heavy modules that are imported after each of several commands, run one after the other in a process."""
    code = (
        "import sys\n"
        "from porter.commands import main\n"
        f"for words in {[[*map(str, words)] for words in commands]!r}:\n"
        "    sys.argv = ['mnv3-port', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code\n"
        f"    print('IMPORTED', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()[1:]) for line in ran.stdout.splitlines() if line.startswith("IMPORTED")]


def test_help():
    commands = ("convert", "verify", "evaluate", "release", "predict")
    assert imported(["--help"], *([command, "--help"] for command in commands)) == [set()] * 6


def test_torch_and_tensorflow_are_imported_where_they_are_needed(demo_folder, tmp_path):
    recorded = ("--reference", demo_folder / "expected.npz")
    convert, *_, last = imported(
        ["convert", demo_folder, "-o", tmp_path / "a.pth"],
        ["release", demo_folder, *recorded, "--out", tmp_path / "dist"],
        ["release", "--check", tmp_path / "dist"],
    )
    assert convert == {"torch", "numpy", "yaml", "google.protobuf"}
    assert "tensorflow" not in last


def test_looking_needs_no_torch(demo_folder):
    found = imported(
        ["inspect", demo_folder], ["inspect", demo_folder, "--json"], ["convert", demo_folder, "--dry-run"]
    )
    assert found == [{"yaml", "google.protobuf"}] * 3


def test_python_api_is_lazy():
    code = (
        "import sys, porter; porter.open_checkpoint; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_process_that_reads_hdf5_imports_no_other_reader():
    """One is started for each of Keras's files."""
    code = "import sys, porter.sources.hdf5; assert 'google.protobuf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_test_imports_a_test():
    """What tests share lies in conftest.py and in helpers."""
    for path in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (tests\b|test_)", path.read_text(), re.M), path
