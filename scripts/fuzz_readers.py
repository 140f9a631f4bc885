"""Fuzz every reader; tests/test_fuzz.py is a short version.

.venv/bin/python scripts/fuzz_readers.py [--inputs 1000000 A READER] [--jobs 2] [--only "V2 index"] [--random SEED]

Inputs are guided by coverage (atheris, libFuzzer), and each reader runs in a process of its own. It stops on an error
that is not PorterError, after 20 s, or above 4 x the file + 64 MiB of resident memory, and keeps the input. libhdf5 is
not instrumented and may crash, so the HDF5 readers run without guidance in forked processes, and deaths of these are
counted. ``--pyfive FOLDER`` compares pyfive with h5py instead. Where atheris is missing, ``--random`` mutates without
guidance, from that seed. Prints a line for each reader.
"""

import argparse
import importlib
import math
import os
import pickle
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

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

    def dump(path: Path, folder: Path, arguments: dict[str, Any], given: Path, _end: float) -> None:
        try:
            hdf5.dump(path, folder, arguments["names"], arguments["averaging"])
        except CheckpointError:
            raise
        except Exception as error:  # as porter.sources.hdf5.main has it
            raise CheckpointError(f"{given}: {error}") from error

    keras._dump = dump


def pyfive_trial(folder: Path, minutes: float) -> None:
    """Compare pyfive with h5py on the HDF5 files below ``folder``; then read mutants of the small ones with pyfive.

    The seeds of the HDF5 readers are put there first. Prints a line for each file, and the outcomes of mutants. (pip
    install --no-deps --target FOLDER pyfive numcodecs, and PYTHONPATH=FOLDER.)
    """
    import fuzzing
    import pyfive  # noqa: F401 - once for all processes

    seeds: list[bytes] = []
    (folder / "seeds").mkdir()
    assert len(list(fuzzing._hdf5_targets(folder / "seeds"))) == len(HDF5)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".h5", ".hdf5", ".keras")):
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            data = zipfile.ZipFile(path).read("model.weights.h5")
        seeds.append(data)
        (plain := Path(tempfile.mkdtemp()) / "x.h5").write_bytes(data)
        trees, cost = {}, {}
        for library in ("h5py", "pyfive"):
            command = [sys.executable, __file__, "--tree", library, str(plain)]
            start = time.perf_counter()
            ran = subprocess.run(command, capture_output=True)
            trees[library] = pickle.loads(ran.stdout) if not ran.returncode else (ran.stderr.splitlines()[-1:], 0, 0)
            cost[library] = f"{trees[library][1]:.2f} of {time.perf_counter() - start:.2f} s, {trees[library][2]} MiB"
        (theirs, *_), (ours, *_) = trees["h5py"], trees["pyfive"]
        differ = [name for name in theirs if name not in ours or ours[name] != theirs[name]]
        same = "same" if theirs == ours else f"differs in {len(differ)} of {len(theirs)}, {differ[:3]}: {ours!s:.200}"
        print(f"{path.relative_to(folder)}: {len(data):,} bytes; h5py {cost['h5py']}; pyfive {cost['pyfive']}; {same}")
    small = sorted({seed for seed in seeds if len(seed) < 1 << 16}, key=len)
    counts, kinds, done, end = Counter[str](), Counter[str](), 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        reader, writer = os.pipe()
        if not (child := os.fork()):
            _read_mutants(small, folder / "mutant", done, writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            lines = pipe.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kinds.update(lines)
        done += len(lines) + bool(code)
        if code:
            counts["hangs" if code == -signal.SIGALRM else "memory" if code == 71 else f"ends with {code}"] += 1
    print(f"pyfive: {done:,} mutants of {len(small)} files: {dict(counts)}; {dict(kinds.most_common())}")


def _read_mutants(seeds: list[bytes], path: Path, first: int, writer: int) -> NoReturn:
    """Read mutants with pyfive, a line into ``writer`` for each; ends at the first that takes too long or too much."""
    import fuzzing
    import pyfive

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30,) * 2)
    for number in range(first, first + BATCH):
        source = random.Random(f"pyfive {number}")
        data = fuzzing.mutate(source.choice(seeds), source)
        path.write_bytes(data)
        before = fuzzing.resident_reset()
        signal.alarm(5)
        try:
            tree(pyfive, path)
            outcome = "read"
        except Exception as error:
            outcome = type(error).__name__
        signal.alarm(0)
        if fuzzing.resident_peak() - before > 4 * len(data) + fuzzing.SLACK:
            os._exit(71)
        os.write(writer, f"{outcome}\n".encode())
    os._exit(0)


def tree(library: Any, path: Path) -> dict[str, Any]:
    """Attributes by a group's name; attributes, dtype, shape and bytes by a dataset's."""
    found: dict[str, Any] = {}
    most = 4 * path.stat().st_size + (64 << 20)

    def walk(item: Any, depth: int) -> None:
        about = {key: plain(item.attrs[key]) for key in item.attrs}
        if hasattr(item, "shape"):
            if math.prod(item.shape) * item.dtype.itemsize > most:
                raise ValueError("claims more than the file has")
            values = item[()]
            found[item.name] = about, str(values.dtype), values.shape, values.tobytes()
            return
        found[item.name] = about
        for key in item if depth < 16 else ():
            walk(item[key], depth + 1)

    def plain(value: Any) -> Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        return (
            list(map(plain, value))
            if isinstance(value, list)
            else value.decode()
            if isinstance(value, bytes)
            else value
        )

    with library.File(str(path)) as file:
        walk(file, 0)
    return found


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
    parser.add_argument("--pyfive", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tree", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.load and tarfile warn about what they meet
    if arguments.pyfive:
        return pyfive_trial(arguments.pyfive, arguments.minutes)
    if arguments.tree:
        start = time.perf_counter()
        found = tree(importlib.import_module(arguments.tree[0]), Path(arguments.tree[1]))
        peak = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        sys.stdout.buffer.write(pickle.dumps((found, time.perf_counter() - start, int(peak[0]) >> 10)))
        return None
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
