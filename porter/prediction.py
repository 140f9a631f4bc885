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
from porter.labels import Label, imagenet_labels
from porter.mapping.files import load_variant
from porter.network.mobilenet_v3 import MobileNetV3
from porter.parity.samples import photos


class Guess(NamedTuple):
    """One class: its number, its label where it is ImageNet's, and its probability."""

    number: int
    label: Label | None
    probability: float


def predict(
    source: str, images: Sequence[Path], variant: str | None = None, top: int = 5
) -> Iterator[tuple[Path, list[Guess]]]:
    """The ``top`` likeliest classes of each image, by the classifier ``source`` (an artifact, or any checkpoint).

    Images are cropped to the central part and resized as the network was evaluated (bilinear). An artifact
    that mnv3-port did not write needs ``variant``. Raises PorterError.
    """
    name = variant or _variant(source)
    model = create_model(name, source)
    assert isinstance(model, MobileNetV3)
    if not model.num_classes:
        raise ArtifactError(f"{source}: a feature extractor, without classes to predict")
    labels = imagenet_labels(model.num_classes)
    spec = load_variant(name).input
    for image in images:
        pixels = torch.from_numpy(photos(image, (spec.size, spec.size), spec.crop).images).permute(0, 3, 1, 2)
        with torch.no_grad():
            found = model(pixels.contiguous()).softmax(1)[0].topk(min(top, model.num_classes))
        numbers, chances = found.indices.tolist(), found.values.tolist()
        yield image, [Guess(n, labels[n] if labels else None, p) for n, p in zip(numbers, chances, strict=True)]


def _variant(source: str) -> str:
    if not source.endswith(SUFFIXES):
        return plan_port(source).mapping.variant
    metadata = load_artifact(Path(source)).metadata
    if metadata is None:
        raise ArtifactError(f"{source}: not written by mnv3-port, so its variant is not known; give --variant")
    return metadata.variant
