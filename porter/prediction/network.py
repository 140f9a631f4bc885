"""A port of any kind, run on one image at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from porter.errors import ArtifactError
from porter.exports.deploy import fastest
from porter.models.build import chosen_device
from porter.models.create import OpenedModel
from porter.photos.images import normalized
from porter.photos.labels import Label, class_labels

if TYPE_CHECKING:
    from PIL.Image import Image


def labels_of(opened: OpenedModel, names: Sequence[str]) -> list[Label]:
    """``names`` as labels, or else those in the artifact, or a classifier's of ImageNet; empty where there are none.

    Raises PorterError where there are not as many as classes.
    """
    names = names or (opened.metadata.class_names if opened.metadata else ())
    whole = opened.whole
    return class_labels(whole.num_classes, names) if names or whole.network.kind == "classifier" else []


def on_one_image(opened: OpenedModel, device: str) -> Callable[[np.ndarray], list[Tensor]]:
    """A function: (H, W, 3) pixels, uint8, or float32 in [0, 1] -> the network's outputs, each without its batch axis.

    They stay on ``device``. Raises PorterError where there is no such device. The function raises ArtifactError where
    an output is NaN or infinite.
    """
    spec, place = opened.input, chosen_device(device)
    model: nn.Module = opened.whole.to(place)
    # For a segmenter or detector, opening costs more than it saves
    if opened.fake_quant and place.type == "cpu" and opened.whole.network.kind == "classifier":
        model = fastest(model, spec.sides)

    def run(pixels: np.ndarray) -> list[Tensor]:
        image = torch.from_numpy(normalized(pixels, spec.mean, spec.std, spec.levels))
        inputs = image.permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            found = model(inputs.to(place))
            outputs = [one[0] for one in (found if isinstance(found, tuple) else (found,))]
            if not all(output.isfinite().all() for output in outputs):
                raise ArtifactError(f"{opened.given}: its outputs are NaN or infinite; are its weights finite?")
        return outputs

    return run


def palette() -> np.ndarray:
    """(256, 3) uint8 colours: PASCAL VOC's, the bits of the number dealt out to red, green and blue in turn."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for place in range(3):  # each triple of bits gives one bit of every channel, the highest first
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * place + channel)) & 1) << (7 - place)).astype(np.uint8)
    return colours


def png_bytes(image: Image) -> bytes:
    """``image`` as a PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
