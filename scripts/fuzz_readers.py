"""Fuzz every reader with mutated files, as tests/test_fuzz.py does in short.

.venv/bin/python scripts/fuzz_readers.py [--inputs 20000 PER FORMAT] [--seed 1]

Prints a line per format and the total; stops with the seed of the first finding.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import fuzzing

parser = argparse.ArgumentParser()
parser.add_argument("--inputs", type=int, default=20_000)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()
warnings.simplefilter("ignore")  # torch.load and tarfile warn about what they meet
total = 0
with tempfile.TemporaryDirectory() as seeds, tempfile.TemporaryDirectory(dir="/dev/shm") as work:
    for target in fuzzing.targets(Path(seeds)):
        start = time.perf_counter()
        counts = fuzzing.fuzz(target, Path(work), arguments.inputs, arguments.seed)
        total += sum(counts.values())
        seconds = time.perf_counter() - start
        print(
            f"{target.name:<14} {counts['refused']:>8} refused {counts['read']:>8} read {seconds:>8.0f} s", flush=True
        )
print(f"{total} mutated inputs, seed {arguments.seed}: no crash, hang or excess")
