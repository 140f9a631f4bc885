"""``evaluate``, whatever the kind of port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from porter.errors import PorterError
from porter.evaluation.boxes import average_precision
from porter.evaluation.classifier import of_others
from porter.evaluation.masks import compare_masks
from porter.evaluation.result import Evaluation, Scores
from porter.evaluation.run import DEFAULT_SETTINGS, Progress, Settings, evaluate_classifier
from porter.mapping.options import PathLike, PortOptions
from porter.models.create import open_model
from porter.photos.images import Preprocessing
from porter.sources.weights import Weights

OF_CLASSIFIERS = ("compare", "preprocess", "batch", "workers", "resume")  # settings that other kinds have no use for
Measure = Callable[[Path, Settings, Progress | None], Evaluation | Scores | None]


def evaluate(
    source: PathLike,
    data: PathLike,
    variant: str | None = None,
    *,
    labels: PathLike | None = None,
    class_names: Sequence[str] = (),
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    fake_quant: bool | None = None,
    compare: str | None = None,
    preprocess: Preprocessing = "card",
    batch: int = 32,
    workers: int | None = None,
    device: str | None = None,
    resume: PathLike | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Evaluation | Scores | None:
    """Measure a port on labelled images: a classifier's accuracy, a segmenter's mean IoU, a detector's mAP.

    Args:
        source: An artifact, a release's folder, a checkpoint, ``timm:NAME``, or ``tf:SOURCE`` for TensorFlow itself.
        data: A classifier's folder of class folders, named by WordNet id or class name, or of images with the id in
            their names; the images of others.
        variant: As for ``convert``.
        labels: A classifier's CSV of ``file,label``, if names do not say the class; a segmenter's folder of masks; a
            detector's COCO annotations.
        class_names: The classes' own names, in order. By default those in the artifact, or ImageNet's.
        mapping: As for ``convert``.
        weights: As for ``convert``.
        fake_quant: False computes a source that was trained for 8 bits in float.
        compare: A second classifier on the same images.
        preprocess: ``card`` as timm does, ``tf`` as slim did, ``tf2`` as ``tf.image.resize``.
        batch: Images at a time.
        workers: Processes that decode images. None: one for each core but one.
        device: ``cpu``, ``cuda``, ``mps``. None: a GPU where there is one.
        resume: A folder that keeps finished batches, for a later call to continue.
        skip_unreadable: Leave out images that cannot be read, and name them in the result.
        progress: ``progress(done, total)`` is called with counts of images.

    Returns:
        An ``Evaluation`` of a classifier, ``Scores`` of others; ``as_json()`` gives plain values. None in all but the
        first process of ``torchrun``.

    Raises:
        PorterError: On bad input, and on a setting that the port has no use for.

    Example:
        >>> found = porter.evaluate(source, photos, workers=0)
        >>> found.accuracy(0, k=5).total
        1
    """
    options = PortOptions(variant, mapping, weights, fake_quant=fake_quant)
    label_file, kept = (None if path is None else Path(path) for path in (labels, resume))
    names = tuple(class_names)
    settings = Settings(compare, label_file, names, preprocess, batch, workers, device, kept, skip_unreadable)
    kind, measure = open_measure(str(source), options)
    for name in OF_CLASSIFIERS if kind != "classifier" else ():
        if getattr(settings, name) != getattr(DEFAULT_SETTINGS, name):
            raise PorterError(f"{name} has no meaning here: {source} is a {kind}")
    return measure(Path(data), settings, progress)


def open_measure(source: str, options: PortOptions) -> tuple[str, Measure]:
    """Open ``source``; what it is, and the function that measures it. Raises PorterError."""
    opened = None if of_others(source) else open_model(source, options)
    kind = opened.whole.network.kind if opened else "classifier"
    if opened is None or kind == "classifier":
        return kind, lambda data, settings, progress: evaluate_classifier(
            source, data, options, settings, progress, opened
        )
    return kind, partial(compare_masks if kind == "segmenter" else average_precision, opened)
