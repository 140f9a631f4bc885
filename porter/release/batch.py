"""``release --all``: every checkpoint of a folder, several at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from porter.conversion import plan_port
from porter.errors import PorterError
from porter.release.card import model_name
from porter.release.publish import Released, release

ARCHIVES = (".tgz", ".tar.gz", ".zip")


class Outcome(NamedTuple):
    """What became of one checkpoint: a release, or the error that prevented it."""

    checkpoint: Path
    released: Released | None
    error: PorterError | None


def release_all(
    folder: Path, out: Path, jobs: int | None = None, found: Callable[[int], None] | None = None, **options: Any
) -> Iterator[Outcome]:
    """Release every tarball, zip and folder in ``folder`` into a folder of ``out`` named as the model is.

    ``jobs`` processes at a time, as many as there are cores when left out; ``options`` are those of ``release``. Told
    how many there are, ``found`` may show it. Gives outcomes as they come. Raises PorterError where there is nothing
    to release, or two have one name.
    """
    if not folder.is_dir():
        raise PorterError(f"{folder}: no such folder; --all takes one of checkpoints")
    checkpoints = [p for p in sorted(folder.iterdir()) if _may_be_one(p)]
    if not checkpoints:
        raise PorterError(f"{folder}: no tarballs ({', '.join(ARCHIVES)}) or folders in it")
    if found:
        found(len(checkpoints))
    targets: dict[Path, Path] = {}
    for checkpoint in checkpoints:
        try:
            target = out / model_name(plan_port(checkpoint, weights=options.get("weights", "auto")).mapping)
        except PorterError as error:
            yield Outcome(checkpoint, None, error)
            continue
        if target in targets.values():
            raise PorterError(f"{checkpoint}: a second {target.name} in {folder}; release them one by one")
        targets[checkpoint] = target
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(targets) or 1)
    # Spawned, for torch and TensorFlow do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_release, source, target, options): source for source, target in targets.items()}
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _release(checkpoint: Path, target: Path, options: dict[str, Any]) -> Outcome:
    try:
        return Outcome(checkpoint, release(checkpoint, target, **options), None)
    except PorterError as error:
        return Outcome(checkpoint, None, error)


def _may_be_one(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.name.endswith(ARCHIVES))
