"""What the commands cost, against what cannot be avoided: starting Python and importing torch.

.venv/bin/python benchmarks/cost.py [--runs N] [--json FILE] [CHECKPOINT]

Whole processes, interleaved, so that a busy machine is busy for all of them; medians and the spread from the
first to the third quartile. CHECKPOINT is small_075 of ../shared/checkpoints, or the demo's where that is missing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from porter.inspection import inspect_checkpoint

SHARED = Path(__file__).parents[2] / "shared" / "checkpoints" / "v3-small_224_0.75_float"


class Run(NamedTuple):
    """One process: wall-clock seconds and peak resident MiB."""

    seconds: float
    peak: float


def measure(command: list[str]) -> Run:
    """Run ``command`` in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


def demo_checkpoint(folder: Path) -> Path:
    """The demo's checkpoint, made by a process of its own."""
    subprocess.run([sys.executable, "-m", "porter", "demo", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "small_075_demo"


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = arguments.checkpoint or (SHARED if SHARED.is_dir() else demo_checkpoint(Path(temporary)))
        # A child starts with the peak of its parent, so this process must not import torch.
        inspection = inspect_checkpoint(checkpoint)
        weights = sum(variable.nbytes for variable in inspection.used) / 2**20
        tool = [str(Path(sys.executable).with_name("mnv3-port"))]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "mnv3-port --help": [*tool, "--help"],
            "mnv3-port inspect": [*tool, "inspect", str(checkpoint)],
            "mnv3-port convert": [*tool, "convert", str(checkpoint), "-o", f"{temporary}/a.pth", "--force"],
        }
        for command in commands.values():  # once unmeasured: byte code and the disk cache
            measure(command)
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
    base = statistics.median(run.seconds for run in runs["python -c 'import torch'"])
    base_peak = statistics.median(run.peak for run in runs["python -c 'import torch'"])
    print(f"{checkpoint}: {inspection.closest.variant}, {weights:.1f} MiB of weights, {arguments.runs} runs each\n")
    print(f"{'command':<26}{'median s':>10}{'quartiles':>16}{'x import torch':>16}{'peak MiB':>10}  above import torch")
    rows = []
    for name, measured in runs.items():
        seconds, peak = statistics.median(r.seconds for r in measured), statistics.median(r.peak for r in measured)
        low, _, high = statistics.quantiles([run.seconds for run in measured], n=4)
        above = (peak - base_peak) / weights
        row = {"command": name, "seconds": seconds, "quartiles": [low, high], "ratio": seconds / base}
        rows.append(row | {"peak_mib": peak, "peak_above_torch_in_weights": above})
        shown = f"{above:.1f} x weights" if peak > base_peak else ""
        print(f"{name:<26}{seconds:>10.2f}{f'{low:.2f} - {high:.2f}':>16}{seconds / base:>16.2f}{peak:>10.0f}  {shown}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
