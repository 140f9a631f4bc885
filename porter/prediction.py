"""``predict``: the likeliest classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from porter.artifacts.files import SUFFIXES, load_artifact
from porter.conversion import plan_port
from porter.create import create_model
from porter.errors import ArtifactError
from porter.images import Preprocessing, normalized, read_image, resized
from porter.labels import Label, imagenet_labels
from porter.mapping.files import load_variant
from porter.network.mobilenet_v3 import MobileNetV3


class Guess(NamedTuple):
    """One class: its number, its label where it is ImageNet's, and its probability."""

    number: int
    label: Label | None
    probability: float


def predict(
    source: str, images: Sequence[Path], variant: str | None = None, top: int = 5, preprocess: Preprocessing = "card"
) -> Iterator[tuple[Path, list[Guess]]]:
    """The ``top`` likeliest classes of each image, by the classifier ``source`` (an artifact, or any checkpoint).

    Images are cropped and resized as ``preprocess`` says (porter.images.resized). An artifact that mnv3-port
    did not write needs ``variant``. Raises PorterError.
    """
    name = variant or variant_of(source)
    model = create_model(name, source)
    assert isinstance(model, MobileNetV3)
    if not model.num_classes:
        raise ArtifactError(f"{source}: a feature extractor, without classes to predict")
    labels = imagenet_labels(model.num_classes)
    spec = load_variant(name).input
    for image in images:
        pixels = resized(read_image(image), (spec.size, spec.size), spec.crop, preprocess)
        inputs = torch.from_numpy(normalized(pixels, spec.mean, spec.std)).permute(2, 0, 1)[None]
        with torch.no_grad():
            found = model(inputs.contiguous()).softmax(1)[0].topk(min(top, model.num_classes))
        if not found.values.isfinite().all():
            raise ArtifactError(f"{source}: gives no probabilities for {image} (NaN); are its weights finite?")
        numbers, chances = found.indices.tolist(), found.values.tolist()
        yield image, [Guess(n, labels[n] if labels else None, p) for n, p in zip(numbers, chances, strict=True)]


def variant_of(source: str) -> str:
    """The variant of an artifact or any checkpoint. Raises PorterError where it cannot be told."""
    if not source.endswith(SUFFIXES):
        return plan_port(source).mapping.variant
    metadata = load_artifact(Path(source)).metadata
    if metadata is None:
        raise ArtifactError(f"{source}: not written by mnv3-port, so its variant is not known; give --variant")
    return metadata.variant
