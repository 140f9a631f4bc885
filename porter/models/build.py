"""The module that a network table makes, where it runs, and what it computes on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from porter.errors import PorterError
from porter.models.lraspp import LRASPP
from porter.models.mobilenet_v3 import MobileNetV3
from porter.models.ssdlite import SSDLite
from porter.network.detection import Detection
from porter.network.network import Network
from porter.network.nodes import endpoint_modules
from porter.network.segmentation import Segmentation

Whole = MobileNetV3 | LRASPP | SSDLite  # a network with its head, unlike a feature pyramid


def build_model(network: Network, num_classes: int, dropout: float | None = None) -> Whole:
    """A classifier, or where the table has another head, a segmenter or a detector; untrained."""
    if isinstance(network.head, Segmentation):
        return LRASPP(network, num_classes)
    if isinstance(network.head, Detection):
        return SSDLite(network, num_classes)
    return MobileNetV3(network, num_classes, dropout)


def chosen_device(name: str) -> torch.device:
    """The device ``name``: ``cpu``, ``cuda``, ``cuda:1``, ``mps``. Raises PorterError if this machine lacks it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PorterError(f"device {name!r}: not here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def nhwc(tensor: Tensor) -> np.ndarray:
    """A map (N, C, H, W) as an array (N, H, W, C), of the same memory on the CPU; other shapes keep their axes."""
    values = tensor.detach().cpu()
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).numpy()


def probabilities(network: Network, logits: Tensor) -> Tensor:
    """(..., classes) logits -> the probabilities of the classes: of one of them each, or each of its own (sigmoid)."""
    return logits.sigmoid() if network.predictions == "sigmoid" else logits.softmax(-1)


@contextmanager
def capture(model: Whole, receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, every forward pass of ``model`` hands each of TensorFlow's endpoints to ``receive(name, tensor)``.

    Feature maps are NCHW, logits and predictions (N, classes). They come one at a time, as they are
    computed, so that a receiver which drops them never holds more than one.
    """

    def with_predictions(name: str, output: Tensor) -> None:
        receive(name, output)
        if name == "Logits":
            receive("Predictions", probabilities(model.network, output))

    def hook(names: list[str]) -> Callable[[nn.Module, object, Tensor], None]:
        def forward_hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
            for name in names:  # the inner map of a block is the second
                with_predictions(name, output if isinstance(output, Tensor) else output[0])

        return forward_hook

    by_module: dict[str, list[str]] = {}
    for name, module in endpoint_modules(model.network, model.num_classes).items():
        by_module.setdefault(module, []).append(name)
    handles = [model.get_submodule(module).register_forward_hook(hook(names)) for module, names in by_module.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
