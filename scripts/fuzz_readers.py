"""Fuzz every reader; tests/test_fuzz.py is a short version.

.venv/bin/python scripts/fuzz_readers.py [--inputs 1000000 A READER] [--jobs 2] [--only "V2 index"] [--random SEED]

Inputs are guided by coverage (atheris, libFuzzer), and each reader runs in a process of its own. It stops on an error
that is not PorterError, after 20 s, or above 4 x the file + 64 MiB of resident memory, and keeps the input. libhdf5 is
not instrumented and may crash, so the HDF5 readers run without guidance in forked processes, and deaths of these are
counted. Where atheris is missing, ``--random`` mutates without guidance, from that seed. Prints a line for each reader.
"""

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

HDF5 = (".weights.h5", "legacy .h5", ".keras")
BATCH = 500  # inputs of a forked process


def guided(name: str, folder: Path, inputs: int) -> None:
    """Become libFuzzer on the reader ``name``; does not return."""
    import atheris

    with atheris.instrument_imports(include=["porter", "tarfile", "zipfile"]):
        import fuzzing
    target = _target(fuzzing, name, folder)
    _leave_hdf5_out()
    place = fuzzing.Place(target, Path(tempfile.mkdtemp(dir=folder)))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(fuzzing.seeds_of(target)):
        (corpus / f"seed{number}").write_bytes(seed)
    counts: Counter[str] = Counter()

    def one(data: bytes) -> None:
        counts[place.attempt(data, name)] += 1
        if sum(counts.values()) % 1000 == 0:
            (folder / "counts").write_text(f"{counts['refused']} {counts['read']} 0")

    longest = 2 * max(map(len, fuzzing.seeds_of(target)))
    options = [f"-runs={inputs}", f"-max_len={longest}", f"-timeout={int(fuzzing.SECONDS)}", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


def unguided(name: str, folder: Path, inputs: int, seed: int) -> None:
    """Mutants in forked processes; libhdf5's part runs in them, so its death takes one process along."""
    import fuzzing

    target = _target(fuzzing, name, folder)
    if name in HDF5:
        _read_hdf5_here()
    done, counts = 0, Counter[str]()
    while done < inputs:
        end = min(done + BATCH, inputs)
        for outcome in _forked(fuzzing, target, folder, range(done, end), seed):
            counts[outcome] += 1
            done += 1
        (folder / "counts").write_text(f"{counts['refused']} {counts['read']} {counts['died']}")


def _forked(fuzzing, target, folder: Path, numbers: range, seed: int) -> list[str]:
    """Outcomes of the inputs ``numbers``, as far as the process came; the last is ``died`` where it did not end."""
    from porter.sources.bounds import allowance, limit_memory

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        place, seeds = fuzzing.Place(target, folder), fuzzing.seeds_of(target)
        if target.name in HDF5:
            limit_memory(allowance(2 * max(map(len, seeds))))  # as porter.sources.hdf5.main has it
        for number in numbers:
            source = random.Random(f"{seed} {target.name} {number}")
            signal.alarm(1 if target.name in HDF5 else int(fuzzing.SECONDS))  # the command waits longer for libhdf5
            try:
                outcome = place.attempt(fuzzing.mutate(source.choice(seeds), source), f"{target.name}, input {number}")
            except BaseException as error:
                os.write(2, f"{error}\n".encode())
                os._exit(70)
            os.write(writer, outcome[2:3].encode())  # re[f]used, re[a]d
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        outcomes = ["refused" if letter == "f" else "read" for letter in pipe.read()]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 70 or (code and target.name not in HDF5):
        raise SystemExit(f"{target.name}, seed {seed}, input {numbers.start + len(outcomes)}: ended with {code}")
    return outcomes + ["died"] * bool(code)


def _leave_hdf5_out() -> None:
    """Refuse what begins like an HDF5 file: a process for each would take all the time."""
    from porter.errors import CheckpointError
    from porter.sources import keras

    def dump(*_: object) -> None:
        raise CheckpointError("fuzzed unguided")

    keras._dump = dump


def _read_hdf5_here() -> None:
    """Have porter.sources.keras call libhdf5 in this process; the caller has forked one for it."""
    from porter.errors import CheckpointError
    from porter.sources import hdf5, keras

    def dump(path: Path, folder: Path, arguments: dict[str, Any], given: Path) -> None:
        try:
            hdf5.dump(path, folder, arguments["names"], arguments["averaging"])
        except CheckpointError:
            raise
        except Exception as error:  # as porter.sources.hdf5.main has it
            raise CheckpointError(f"{given}: {error}") from error

    keras._dump = dump


def _target(fuzzing, name: str, folder: Path):
    seeds = folder / "seeds"
    seeds.mkdir()
    return next(target for target in fuzzing.targets(seeds) if target.name == name)


def started(name: str, arguments: argparse.Namespace) -> bool:
    """Fuzz one reader in a process of its own; print its line. False where it found something."""
    seed = arguments.random if arguments.random is not None or name not in HDF5 else 1
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))
    command = [sys.executable, __file__, "--one", name, str(folder), "--inputs", str(arguments.inputs)]
    command += ["--random", str(seed)] if seed is not None else []
    start = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    numbers = (folder / "counts").read_text().split() if (folder / "counts").is_file() else "000"
    refused, read, died = map(int, numbers)
    how = "guided" if seed is None else "random"
    covered = re.findall(r"cov: (\d+)", ran.stderr)
    about = f"{covered[-1]} edges" if covered else f"{died} deaths of libhdf5" if died else ""
    spent = time.perf_counter() - start
    print(f"{name:<14} {how} {refused:>9,} refused {read:>9,} read {spent:>7.0f} s  {about}", flush=True)
    if ran.returncode:
        print(f"{shlex.join(command)}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")
        print(f"the input: {[str(path) for path in folder.iterdir() if path.is_file()]}", flush=True)
    return ran.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append")
    parser.add_argument("--random", type=int)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.load and tarfile warn about what they meet
    if arguments.one:
        name, folder = arguments.one
        if arguments.random is None:
            guided(name, Path(folder), arguments.inputs)
        return unguided(name, Path(folder), arguments.inputs, arguments.random)
    import fuzzing

    with tempfile.TemporaryDirectory() as seeds:
        names = [target.name for target in fuzzing.targets(Path(seeds))]
    chosen = [name for name in names if not arguments.only or name in arguments.only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        passed = list(pool.map(lambda name: started(name, arguments), chosen))
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
