"""``evaluate`` of a classifier: the run over the images, in one process or under torchrun."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader

from porter.atomic import check_folder
from porter.errors import PorterError
from porter.evaluation.classifier import Classifier, open_classifier
from porter.evaluation.dataset import Labelled, find_labelled
from porter.evaluation.journal import read_journal, write_batch
from porter.evaluation.result import Evaluation, Seen
from porter.mapping.options import DEFAULT_OPTIONS, PortOptions
from porter.models.build import chosen_device
from porter.models.create import OpenedModel
from porter.network.spec import Input
from porter.photos.images import Preprocessing, read_image, resized
from porter.process import cores, die_with_parent

Progress = Callable[[int, int], None]  # images done, of how many


class Place(NamedTuple):
    """The rank of this process among all of an evaluation, and its device."""

    rank: int
    processes: int
    device: str


@dataclass(frozen=True)
class Settings:
    """How to evaluate; ``compare`` is a second classifier.

    ``labels`` is a classifier's CSV, where file names do not say the class; a segmenter's folder of masks; a detector's
    JSON. ``class_names`` are the classes' own names (by default those in the artifact). ``workers`` processes decode
    images, made ready by ``preprocess``; ``device`` is a GPU where there is one; ``resume`` is a folder that keeps
    finished batches. ``skip_unreadable`` leaves out images that cannot be read, and names them.
    """

    compare: str | None = None
    labels: Path | None = None
    class_names: tuple[str, ...] = ()
    preprocess: Preprocessing = "card"
    batch: int = 32
    workers: int | None = None
    device: str | None = None
    resume: Path | None = None
    skip_unreadable: bool = False


DEFAULT_SETTINGS = Settings()


def evaluate_classifier(
    source: str,
    data: Path,
    options: PortOptions = DEFAULT_OPTIONS,
    settings: Settings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
    opened: OpenedModel | None = None,
) -> Evaluation | None:
    """Accuracy of ``source`` (``open_classifier``) on the images of ``data`` (``find_labelled``).

    ``opened`` is ``source``, where it has been opened already.

    Batches are the same however many processes share them, so the result is too. Under torchrun (gloo, or nccl
    where there are GPUs) process r of n takes every n-th batch; the first one returns the result, the others None.
    ``progress(done, total)`` counts this process's images. Raises PorterError.
    """
    batch, resume, preprocess = settings.batch, settings.resume, settings.preprocess
    if resume:
        check_folder(resume)
    if batch < 1:
        raise PorterError(f"batches of {batch} images: must be at least 1")
    with _place(settings.device) as place:
        classifiers = [open_classifier(source, options, place.device, opened)]
        if settings.compare:
            classifiers.append(open_classifier(settings.compare, options, place.device))
        class_names = settings.class_names or classifiers[0].class_names
        photos = find_labelled(data, settings.labels, class_names)
        _check(classifiers, photos)
        batches = [photos[start : start + batch] for start in range(0, len(photos), batch)]
        header = _header(classifiers, photos, preprocess, batch)
        known = _broadcast(place, lambda: read_journal(resume, header) if resume else {})
        known = {number: seen for number, seen in known.items() if _of_these(seen, batches, number, len(classifiers))}
        mine = [number for number in range(len(batches)) if number not in known][place.rank :: place.processes]
        began = time.perf_counter()
        found = {}
        journal = (resume / f"{place.rank}.jsonl").open("a") if resume else nullcontext()
        with journal as file:
            for number, seen in _run(classifiers, batches, mine, settings):
                found[number] = seen
                if file:
                    write_batch(file, number, seen)
                if progress:
                    progress(sum(map(len, found.values())), sum(len(batches[n]) for n in mine))
        gathered = _gather(place, found)
        if place.rank:
            return None
        every = known | {number: seen for part in gathered for number, seen in part.items()}
        total = sum(len(part) for part in gathered) + len(known)
        if total != len(batches) or every.keys() != set(range(len(batches))):  # no batch twice, none left out
            raise RuntimeError(f"{total} batches came back, expected {len(batches)}")
        together = list(zip(photos, (seen for number in sorted(every) for seen in every[number]), strict=True))
        skipped = [str(photo.path) for photo, seen in together if not seen.ranks]
        if skipped and not settings.skip_unreadable:  # by an earlier run with skip_unreadable
            raise PorterError(f"{skipped[0]}: could not be read; leave such images out, or mend it and start again")
        if len(skipped) == len(together):
            raise PorterError(f"{data}: none of its {len(together)} images could be read")
        return Evaluation(
            classifiers=[classifier.name for classifier in classifiers],
            digests=[classifier.digest for classifier in classifiers],
            preprocess=preprocess,
            seen=[seen for _, seen in together if seen.ranks],
            photos=[str(photo.path) for photo, seen in together if seen.ranks],
            skipped=skipped,
            class_names=list(class_names),
            measured=sum(len(seen) for part in gathered for seen in part.values()),
            seconds=time.perf_counter() - began,
            processes=place.processes,
        )


def _decoded(spec: Input, preprocess: Preprocessing, photos: Sequence[Labelled]) -> list[np.ndarray | PorterError]:
    """A batch, decoded and resized. An unreadable file is represented by its error."""
    found: list[np.ndarray | PorterError] = []
    for photo in photos:
        try:
            found.append(resized(read_image(photo.path), spec.sides, spec.crop, preprocess))
        except PorterError as error:
            found.append(error)
    return found


def _run(
    classifiers: list[Classifier], batches: list[list[Labelled]], numbers: list[int], settings: Settings
) -> Iterator[tuple[int, list[Seen]]]:
    spec, workers = classifiers[0].input, settings.workers
    if workers is None:
        workers = max(0, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
    decoded: DataLoader[Any] = DataLoader(
        [batches[number] for number in numbers],  # type: ignore[arg-type]  # a list does as a data set
        batch_size=None,
        num_workers=min(workers, len(numbers)),
        collate_fn=partial(_decoded, spec, settings.preprocess),
        worker_init_fn=partial(_quiet_end, os.getpid()),
    )
    for number, pixels in zip(numbers, decoded, strict=True):
        unreadable = [image for image in pixels if isinstance(image, PorterError)]
        if unreadable and not settings.skip_unreadable:
            raise unreadable[0]
        readable = [image for image in pixels if not isinstance(image, PorterError)]
        logits: Iterator[tuple[np.ndarray, ...]] = iter(())  # of each readable image, by classifier
        if readable:
            images = np.stack(readable)
            logits = zip(*(classifier.logits(images) for classifier in classifiers), strict=True)
        seen = [
            _seen(photo.label, () if isinstance(image, PorterError) else next(logits))
            for photo, image in zip(batches[number], pixels, strict=True)
        ]
        yield number, seen


def _seen(label: int, logits: Sequence[np.ndarray]) -> Seen:
    return Seen(label, [rank(one, label) for one in logits], [int(one.argmax()) for one in logits])


def _of_these(seen: list[Seen], batches: list[list[Labelled]], number: int, classifiers: int) -> bool:
    """Whether a journal's batch ``number`` is one of these: it may be damaged, or written by somebody else."""
    return (
        0 <= number < len(batches)
        and [one.label for one in seen] == [photo.label for photo in batches[number]]
        and all(len(one.ranks) in (0, classifiers) and len(one.ranks) == len(one.guesses) for one in seen)
    )


def _quiet_end(parent: int, _worker: int) -> None:
    """A worker ends without a traceback when the evaluation is interrupted.

    Code 0, or the DataLoader would take it for a crash.
    """
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def rank(logits: np.ndarray, label: int) -> int:
    """How many of the (classes,) ``logits`` rank before ``label``'s: higher ones, and equal ones of a lower number.

    NaN comes before everything else.
    """
    mine = logits[label]
    return int((~(logits <= mine)).sum() + (logits[:label] == mine).sum())


def _check(classifiers: list[Classifier], photos: list[Labelled]) -> None:
    first, *others = classifiers
    for other in others:
        if other.classes != first.classes:
            raise PorterError(f"{other.name} has {other.classes} classes, {first.name} {first.classes}: not comparable")
        if other.input != first.input:
            raise PorterError(f"{other.name} takes other images than {first.name}: {other.input}, {first.input}")
    for photo in photos:
        if photo.label >= first.classes:
            raise PorterError(f"{photo.path}: class {photo.label}; {first.name} has {first.classes} classes")


def _header(classifiers: list[Classifier], photos: list[Labelled], preprocess: str, batch: int) -> dict[str, object]:
    listing = "\n".join(f"{photo.path.name},{photo.label}" for photo in photos)
    return {
        "classifiers": [[classifier.name, classifier.digest] for classifier in classifiers],
        "images": len(photos),
        "listing": hashlib.sha256(os.fsencode(listing)).hexdigest(),
        "preprocess": preprocess,
        "batch": batch,
    }


def device_of_one_process(asked: str | None) -> str:
    """The device of an evaluation that takes one process. Raises PorterError under torchrun."""
    with _place(asked) as place:
        if place.processes > 1:
            raise PorterError("only a classifier's evaluation is shared among processes; leave torchrun out")
        return place.device


@contextmanager
def _place(asked: str | None) -> Iterator[Place]:
    """Join torchrun's processes where there are any."""
    if asked is not None:
        chosen_device(asked)
    gpu = torch.cuda.is_available() and asked in (None, "cuda")
    device = asked if asked not in (None, "cuda") else f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place(0, 1, device)
        return
    if gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Place(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        torch.distributed.destroy_process_group()


def _broadcast(place: Place, read: Callable[[], dict[int, list[Seen]]]) -> dict[int, list[Seen]]:
    """Call ``read`` in the first process and give its result to all."""
    found = [read() if place.rank == 0 else {}]
    if place.processes > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def _gather(place: Place, mine: dict[int, list[Seen]]) -> list[dict[int, list[Seen]]]:
    """Collect every process's batches in the first one."""
    if place.processes == 1:
        return [mine]
    parts: list[dict[int, list[Seen]]] = [{} for _ in range(place.processes)]
    torch.distributed.gather_object(mine, parts if place.rank == 0 else None)
    return parts
