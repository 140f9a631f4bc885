"""Reading: throughput against `cat`, opening and listing, and how time and memory grow.

.venv/bin/python benchmarks/reading.py [--mib 1024] [--list 10000] [--counts 100 1000 ...] [--sizes 1 16 256 ...]

Checkpoints are made in a temporary folder. Throughput is of a warm file, with and without checksums. Growth is
measured in processes of their own: seconds to open and to read everything, and peak memory above an empty process;
with matplotlib it is plotted to growth.svg.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import RESULTS, interleaved, table, timed, write_result

from porter.sources import open_checkpoint
from porter.sources.bundle_writer import write_bundle


def make(folder: Path, variables: int, mib: float) -> Path:
    """A checkpoint of ``variables`` tensors of equal size, ``mib`` MiB in all; its prefix."""
    each = max(1, int(mib * 2**20 / 4 / variables))
    values = np.random.default_rng(0).standard_normal(each).astype(np.float32)
    prefix = folder / f"model-{variables}"
    write_bundle(prefix, {f"MobilenetV3/layer_{i:07}/weights": values for i in range(variables)}, force=True)
    return prefix


def read_all(prefix: Path, checksums: bool) -> None:
    """Every tensor, one at a time."""
    for variable in open_checkpoint(prefix, checksums=checksums).values():
        variable.read()


CHILD = """
import sys, time
import numpy
from porter.sources import open_checkpoint

def peak_mib():  # not ru_maxrss, which starts with the parent's
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

before = peak_mib()
start = time.perf_counter()
checkpoint = open_checkpoint(sys.argv[1])
opened = time.perf_counter()
for variable in checkpoint.values():
    variable.read()
read = time.perf_counter()
print(opened - start, read - opened, peak_mib() - before)
"""


def growth(prefix: Path, runs: int) -> dict[str, float]:
    """Median seconds to open and to read, and peak MiB, of processes of their own."""
    found = []
    for _ in range(runs):
        ran = subprocess.run([sys.executable, "-c", CHILD, prefix], stdout=subprocess.PIPE, text=True, check=True)
        found.append([float(value) for value in ran.stdout.split()])
    opened, read, peak = (timed(list(column)).median for column in zip(*found, strict=True))
    return {"open_seconds": opened, "read_seconds": read, "peak_mib": peak}


def plot(rows: list[dict[str, float]], folder: Path) -> None:
    """Time and memory against variables and bytes, log-log."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mnv3-port"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    by_count = [row for row in rows if row["by"] == "variables"]
    by_size = [row for row in rows if row["by"] == "mib"]
    for panel, chosen, x, ys in (
        (panels[0], by_count, "variables", ("open_seconds", "read_seconds")),
        (panels[1], by_size, "mib", ("read_seconds",)),
        (panels[2], by_size, "mib", ("peak_mib",)),
    ):
        for y in ys:
            panel.loglog([row[x] for row in chosen], [max(row[y], 1e-4) for row in chosen], "o-", label=y)
        panel.set_xlabel("variables" if x == "variables" else "MiB in 100 variables")
        panel.grid(alpha=0.3)
        panel.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "growth.svg", metadata={"Date": None})


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--list", type=int, default=10_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prefix = make(folder, 1000, given.mib)
        [shard] = folder.glob("*.data-*")
        times = interleaved(
            {
                "cat file > /dev/null": lambda: subprocess.run(f"cat {shard} > /dev/null", shell=True, check=True),
                "read, no checksums": lambda: read_all(prefix, False),
                "read, checksums": lambda: read_all(prefix, True),
            },
            given.rounds,
        )
        speeds = {name: given.mib / 1024 / one.median for name, one in times.items()}
        cat = speeds["cat file > /dev/null"]
        rows = [[name, f"{speed:.2f}", f"{speed / cat:.2f}"] for name, speed in speeds.items()]
        print(f"{given.mib} MiB in 1000 variables\n\n{table(['', 'GiB/s', 'x cat'], rows)}")
        (folder / "list").mkdir()
        small = make(folder / "list", given.list, 1)
        listing = []
        for _ in range(given.rounds):
            start = time.perf_counter()
            count = len([(variable.name, variable.shape) for variable in open_checkpoint(small).values()])
            listing.append(time.perf_counter() - start)
        print(f"\nopening and listing {count} variables: {timed(listing).median * 1e3:.0f} ms", flush=True)
        shard.unlink()
        points = [("variables", n, 16.0) for n in given.counts] + [("mib", 100, float(mib)) for mib in given.sizes]
        grown = []
        for by, variables, mib in points:
            at = folder / f"{by}-{variables}-{mib:.0f}"
            at.mkdir()
            grown.append({"by": by, "variables": variables, "mib": mib} | growth(make(at, variables, mib), 3))
            for path in at.iterdir():
                path.unlink()
    header = ["variables", "MiB", "open s", "read s", "peak MiB"]
    formats = {"variables": "", "mib": ".0f", "open_seconds": ".3f", "read_seconds": ".3f", "peak_mib": ".0f"}
    lines = [[format(row[name], how) for name, how in formats.items()] for row in grown]
    print(f"\n{table(header, lines)}")
    found = {"mib": given.mib, "gib_per_second": speeds, "list": {"variables": count, **timed(listing).as_json()}}
    write_result("reading", found | {"growth": grown}, given.results)
    plot(grown, given.results)
    print(json.dumps({"x cat": {name: round(speed / cat, 2) for name, speed in speeds.items()}}))


if __name__ == "__main__":
    main()
