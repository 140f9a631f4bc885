"""What can be evaluated: our ports, timm's models, TensorFlow running the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from porter.errors import PorterError
from porter.exports.deploy import fastest
from porter.mapping.options import DEFAULT_OPTIONS, PortOptions
from porter.models.create import OpenedModel, open_model
from porter.models.timm_import import timm_model
from porter.network.spec import Input
from porter.parity.references.choose import open_reference
from porter.photos.images import normalized
from porter.port import plan_port

AT_ONCE = 4  # images that a reference's process gets at once; its memory limit is that for one image


class Classifier(NamedTuple):
    """``logits`` takes images as ``resized`` gives them, (N, H, W, 3), and gives (N, classes), background dropped.

    ``input`` says their size, and how the network takes their pixels. ``class_names`` are those in an artifact,
    background dropped too. ``digest`` is the SHA-256 of the file, or of a source's first file; empty for timm's own
    weights.
    """

    name: str
    classes: int
    input: Input
    digest: str
    logits: Callable[[np.ndarray], np.ndarray]
    class_names: tuple[str, ...] = ()


def of_others(source: str) -> bool:
    """Whether ``source`` is no port, but timm's model (``timm:NAME``) or TensorFlow's (``tf:SOURCE``)."""
    return source.partition(":")[0] in ("timm", "tf")


def open_classifier(
    source: str, options: PortOptions = DEFAULT_OPTIONS, device: str = "cpu", opened: OpenedModel | None = None
) -> Classifier:
    """An artifact or any checkpoint, which may be ``opened``; ``timm:NAME`` (pretrained); ``tf:SOURCE``, in TensorFlow.

    Raises PorterError.
    """
    kind, _, name = source.partition(":")
    if not of_others(source):
        found = _ours(opened or open_model(source, options), device)
    else:
        found = _timm(name, device) if kind == "timm" else _tensorflow(name, options)
    if found.classes < 1:
        raise PorterError(f"{found.name}: a feature extractor, without classes to evaluate")
    return found


def _ours(opened: OpenedModel, device: str) -> Classifier:
    model, mapping = opened.classifier, opened.mapping
    background = mapping.classes.background if model.num_classes == mapping.classes.background_of else None
    fast = fastest(model, mapping.input.sides) if device == "cpu" else model
    names = opened.metadata.class_names if opened.metadata else []
    return Classifier(
        name=f"{opened.given} (8 bits)" if opened.fake_quant else opened.given,
        classes=model.num_classes - (background is not None),
        input=opened.input,
        digest=next(iter(opened.digests.values()), ""),
        logits=_torch_logits(fast, opened.input, device, background),
        class_names=tuple(name for number, name in enumerate(names) if number != background),
    )


def _torch_logits(
    model: torch.nn.Module, spec: Input, device: str, background: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    model = model.eval().to(device)

    def logits(pixels: np.ndarray) -> np.ndarray:
        images = normalized(pixels, spec.mean, spec.std, spec.levels)
        with torch.inference_mode():
            inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).contiguous()
            found: np.ndarray = model(inputs).cpu().numpy()
        return found if background is None else np.delete(found, background, axis=1)

    return logits


def _timm(name: str, device: str) -> Classifier:
    model = timm_model(name)
    config = model.pretrained_cfg
    size, channels = config["input_size"][1], config["input_size"][0]
    spec = Input(size, channels, list(config["mean"]), list(config["std"]), config["crop_pct"])
    return Classifier(f"timm:{name}", model.num_classes, spec, "", _torch_logits(model, spec, device))


def _tensorflow(source: str, options: PortOptions) -> Classifier:
    port = plan_port(source, options)
    spec = port.mapping.input
    reference = open_reference("auto", port)
    background = port.mapping.classes.background if port.plan.background_dropped else None

    def logits(pixels: np.ndarray) -> np.ndarray:
        images = normalized(pixels, spec.mean, spec.std, spec.levels)
        if port.white is not None:  # the file scales the pixels itself, and the reference makes them of [-1, 1]
            whole = pixels if pixels.dtype == np.uint8 else np.round(pixels * 255)
            images = (whole / 127.5 - 1).astype(np.float32)
        parts = []
        for start in range(0, len(images), AT_ONCE):
            [(_, (found, _))] = reference.run(images[start : start + AT_ONCE], ["Logits"])
            parts.append(found)
        whole = np.concatenate(parts)
        return whole if background is None else np.delete(whole, background, axis=1)

    name, digest = f"tf:{source} ({reference.name})", next(iter(port.checkpoint.digests().values()))
    return Classifier(name, port.plan.num_classes, spec, digest, logits)
