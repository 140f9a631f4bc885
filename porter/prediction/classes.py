"""``predict``: the likeliest classes of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from porter.errors import ArtifactError, PorterError
from porter.mapping.options import PortOptions
from porter.models.create import open_model
from porter.models.devices import chosen_device
from porter.photos.images import Photo, Preprocessing, normalized, read_image, resized
from porter.photos.labels import Label, class_labels
from porter.port import DEFAULT


@dataclass(frozen=True)
class Settings:
    """How to predict: the ``top`` classes, of images made ready by ``preprocess`` (porter.photos.images.resized).

    ``class_names`` are the classes' own names, by default those in the artifact or ImageNet's. ``skipped(error)`` is
    called for images that cannot be read; without it they are errors.
    """

    top: int = 5
    preprocess: Preprocessing = "card"
    device: str = "cpu"
    class_names: Sequence[str] = ()
    skipped: Callable[[PorterError], None] | None = None


AS_EVER = Settings()


class Guess(NamedTuple):
    """One class: its number, its label where it has one, and its probability."""

    number: int
    label: Label | None
    probability: float


def predict(
    source: str, images: Iterable[Photo], options: PortOptions = DEFAULT, settings: Settings = AS_EVER
) -> Iterator[tuple[Photo, list[Guess]]]:
    """The likeliest classes of each image, by the classifier ``source`` (an artifact, or any checkpoint).

    An image is a path, or an open binary file. An artifact that mnv3-port did not write needs a variant. Raises
    PorterError.
    """
    opened = open_model(source, options)
    model = opened.classifier
    if not model.num_classes:
        raise ArtifactError(f"{source}: a feature extractor, without classes to predict")
    names = settings.class_names or (opened.metadata.class_names if opened.metadata else ())
    labels = class_labels(model.num_classes, names)
    device = chosen_device(settings.device)
    model.to(device)
    spec = opened.mapping.input
    for image in images:
        try:
            pixels = resized(read_image(image), (spec.size, spec.size), spec.crop, settings.preprocess)
        except PorterError as error:
            if settings.skipped is None:
                raise
            settings.skipped(error)
            continue
        inputs = torch.from_numpy(normalized(pixels, spec.mean, spec.std)).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            found = model(inputs.contiguous()).softmax(1)[0].topk(min(settings.top, model.num_classes))
        if not found.values.isfinite().all():
            raise ArtifactError(f"{source}: gives no probabilities for {image} (NaN); are its weights finite?")
        numbers, chances = found.indices.tolist(), found.values.tolist()
        yield image, [Guess(n, labels[n] if labels else None, p) for n, p in zip(numbers, chances, strict=True)]
