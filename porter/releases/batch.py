"""``release --all``: every checkpoint in a folder, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from porter.atomic import check_folder
from porter.errors import PorterError
from porter.mapping.options import PortOptions
from porter.port import plan_port
from porter.process import cores, die_with_parent
from porter.releases.publish import Released, release, release_name

_ended: list[int] = []  # the signal that ended this process of a pool
PORT_OPTIONS = ("weights", "keep_background", "fake_quant")
ENDS = (signal.SIGINT, signal.SIGTERM)
ARCHIVES = (".tgz", ".tar.gz", ".zip")


class Outcome(NamedTuple):
    """The result for one checkpoint: a release, or the error that prevented it."""

    checkpoint: Path
    released: Released | None
    error: PorterError | None


def release_all(
    folder: Path, out: Path, jobs: int | None = None, found: Callable[[int], None] | None = None, **options: Any
) -> Iterator[Outcome]:
    """Release every tarball, zip and folder in ``folder`` into a folder below ``out`` named after the model.

    Runs ``jobs`` processes at a time (None: one per core); ``options`` are those of ``release``. ``found(count)`` is
    called with the number of checkpoints. Yields outcomes as they come. Raises PorterError if there is nothing to
    release, or two checkpoints have one name.
    """
    check_folder(out)
    if not folder.is_dir():
        raise PorterError(f"{folder}: no such folder; to release several, name a folder of checkpoints")
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    checkpoints = [path for path in visible if path.is_dir() or path.name.endswith(ARCHIVES)]
    if not checkpoints:
        raise PorterError(f"{folder}: no tarballs ({', '.join(ARCHIVES)}) or folders in it")
    if found:
        found(len(checkpoints))
    targets: dict[Path, Path] = {}
    for checkpoint in checkpoints:
        try:
            port = plan_port(checkpoint, PortOptions(**{k: v for k, v in options.items() if k in PORT_OPTIONS}))
            target = out / release_name(port)
        except PorterError as error:
            yield Outcome(checkpoint, None, error)
            continue
        if target in targets.values():
            raise PorterError(f"{checkpoint}: a second {target.name} in {folder}; release them one by one")
        targets[checkpoint] = target
    jobs = min(jobs or cores(), len(targets) or 1)
    # Spawned: torch and TensorFlow do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_quietly, initargs=(os.getpid(),)) as pool:
        # Processes inherit this until they can handle signals
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        running = {pool.submit(_release, source, target, options): source for source, target in targets.items()}
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_quietly(parent: int) -> None:
    """Make this pool process end silently when interrupted; its parent reports it. And with its parent."""
    die_with_parent(parent)
    for number in ENDS:
        signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    _ended.append(number)
    sys.exit(128 + number)


def _release(checkpoint: Path, target: Path, options: dict[str, Any]) -> Outcome:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)  # only here does an exit go to the parent, in silence
    if _ended:  # the pool hands over what was queued already
        sys.exit(128 + _ended[0])
    try:
        return Outcome(checkpoint, release(checkpoint, target, **options), None)
    except PorterError as error:
        return Outcome(checkpoint, None, error)
