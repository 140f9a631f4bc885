"""What the commands cost, against what cannot be avoided and what a user would do instead.

.venv/bin/python benchmarks/cost.py [--runs N] [--batch N] [--results FOLDER] [CHECKPOINT]

Whole processes, interleaved, so that a busy machine is busy for all of them; medians and the spread from the
first to the third quartile. CHECKPOINT is small_075 of ../shared/checkpoints, or the demo's where that is missing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from timing import RESULTS, SHARED, table, timed, write_result

from porter.report.inspection import inspect_checkpoint
from porter.sources import open_checkpoint

# What a user writes today: TensorFlow reads, numpy transposes, timm's model takes, torch saves.
SCRIPT = """
import os, re, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
import torch
from porter.models.timm_import import import_timm
timm = import_timm()
names = dict(line.split() for line in open(sys.argv[3]))
reader = tf.train.load_checkpoint(sys.argv[1])
model = timm.create_model("tf_mobilenetv3_small_075")
state = model.state_dict()
for variable, entry in names.items():
    value = reader.get_tensor(variable)
    if entry.startswith("classifier"):
        value = value[..., 1:]
    if value.ndim == 4:
        value = value.transpose(2, 3, 0, 1) if "depthwise" in variable else value.transpose(3, 2, 0, 1)
    if entry == "classifier.weight":
        value = value[:, :, 0, 0]
    state[entry] = torch.from_numpy(value.copy())
model.load_state_dict(state)
torch.save(model.state_dict(), sys.argv[2])
"""


class Run(NamedTuple):
    """One process: wall-clock seconds and peak resident MiB."""

    seconds: float
    peak: float


def measure(command: list[str]) -> Run:
    """Run ``command`` in a process of its own, which may write byte code, as pip does on installing."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


def demo_checkpoint(folder: Path) -> Path:
    """The demo's checkpoint, made by a process of its own."""
    subprocess.run([sys.executable, "-m", "porter", "demo", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "small_075_demo"


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=100, help="checkpoints converted by one process")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = given.checkpoint or SHARED / "v3-small_224_0.75_float"
        checkpoint = checkpoint if checkpoint.is_dir() else demo_checkpoint(folder)
        # A child starts with the peak of its parent, so this process must not import torch.
        inspection = inspect_checkpoint(open_checkpoint(checkpoint))
        weights = sum(variable["bytes"] for variable in inspection["variables"]) / 2**20
        prefix = Path(inspection["path"])
        (folder / "names.txt").write_text(names_of(str(checkpoint)))
        tool = [str(Path(sys.executable).with_name("mnv3-port"))]
        python = [sys.executable, "-c"]
        run = training_run(folder / "run", prefix, given.batch)
        output, recorded = str(folder / "a.pth"), str(checkpoint / "expected.npz")
        commands = {
            "import torch": [*python, "import torch"],
            "import tensorflow": [*python, "import tensorflow"],
            "mnv3-port --help": [*tool, "--help"],
            "mnv3-port inspect": [*tool, "inspect", str(checkpoint)],
            "mnv3-port convert": [*tool, "convert", str(checkpoint), "-o", output, "--force"],
            **{
                f"mnv3-port convert, {suffix}": [
                    *(*tool, "convert", str(checkpoint), "-o", str(folder / f"a{suffix}"), "--force")
                ]
                for suffix in (".safetensors", ".onnx", ".tflite")
            },
            "the user's own script": [*python, SCRIPT, str(prefix), str(folder / "b.pth"), str(folder / "names.txt")],
            f"mnv3-port convert, {given.batch} of them": [
                *(*tool, "convert", *run, "-o", str(folder / "out"), "--format", "safetensors", "--force")
            ],
            "mnv3-port verify, recorded": [*tool, "verify", str(checkpoint), "--reference", recorded],
            "mnv3-port verify, both questions recorded": [
                *(*tool, "verify", str(checkpoint), "--reference", str(folder / "released" / "reference.npz"))
            ],
            "mnv3-port verify, live graph": [*tool, "verify", str(checkpoint)],
            "mnv3-port release": [*tool, "release", str(checkpoint), "--out", str(folder / "released"), "--force"],
        }
        measure(commands["mnv3-port release"])  # which records a reference
        for command in commands.values():  # once unmeasured: byte code and the disk cache
            measure(command)
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(given.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
    seconds = {name: timed([run.seconds for run in measured]) for name, measured in runs.items()}
    peaks = {name: timed([run.peak for run in measured]).median for name, measured in runs.items()}
    base = seconds["import torch"].median
    print(f"{checkpoint}: {inspection['closest']['variant']}, {weights:.1f} MiB of weights, {given.runs} runs each\n")
    rows = [
        [name, f"{s.median:.2f}", f"{s.low:.2f} - {s.high:.2f}", f"{s.median / base:.2f}", f"{peaks[name]:.0f}"]
        for name, s in seconds.items()
    ]
    print(table(["command", "s", "quartiles", "x import torch", "peak MiB"], rows))
    found = claims({name: s.median for name, s in seconds.items()}, given.batch)
    found["convert: peak above import torch, in weights"] = (
        peaks["mnv3-port convert"] - peaks["import torch"]
    ) / weights
    print("\n" + table(["", ""], [[name, f"{value:.2f}"] for name, value in found.items()]))
    commands_json = {name: s.as_json() | {"peak_mib": peaks[name]} for name, s in seconds.items()}
    write_result("cost", {"commands": commands_json, "claims": found}, given.results)


def claims(seconds: dict[str, float], batch: int) -> dict[str, float]:
    """What the numbers say of the goals."""
    one, several = seconds["mnv3-port convert, .safetensors"], seconds[f"mnv3-port convert, {batch} of them"]
    torch, tensorflow = seconds["import torch"], seconds["import tensorflow"]
    both = seconds["mnv3-port verify, both questions recorded"]
    return {
        "convert, .safetensors: x import torch": one / torch,
        "convert, .onnx: x import torch": seconds["mnv3-port convert, .onnx"] / torch,
        "convert, .pth: x the user's own script": seconds["mnv3-port convert"] / seconds["the user's own script"],
        "convert, .safetensors: ms for each further checkpoint": (several - one) / max(1, batch - 1) * 1e3,
        "verify, recorded: s beyond import torch": seconds["mnv3-port verify, recorded"] - torch,
        "verify, both questions recorded: s beyond import torch": both - torch,
        "verify, live: s beyond import tensorflow": seconds["mnv3-port verify, live graph"] - tensorflow,
        "release: s beyond import tensorflow and torch": seconds["mnv3-port release"] - tensorflow - torch,
    }


def names_of(checkpoint: str) -> str:
    """``variable entry`` lines, which a user's script has as a table: from the plan, in a process of its own."""
    code = (
        "import sys; from porter.exports.convert import plan_port\n"
        "for step in plan_port(sys.argv[1]).plan.steps: print(step.source, step.target)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, checkpoint], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def training_run(folder: Path, prefix: Path, count: int) -> list[str]:
    """``count`` checkpoints as one training run leaves them: links to one."""
    folder.mkdir()
    for number in range(count):
        for path in prefix.parent.glob(f"{prefix.name}.*"):
            (folder / f"model-{number}{path.name.removeprefix(prefix.name)}").symlink_to(path.resolve())
    return [str(folder / f"model-{number}") for number in range(count)]


if __name__ == "__main__":
    main()
