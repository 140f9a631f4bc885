"""TensorFlow's endpoint names (``layer_5/depthwise_output``) on our modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from porter.models.build import Whole
from porter.network.endpoints import endpoint_modules


@contextmanager
def capture(model: Whole, receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, every forward pass of ``model`` hands each endpoint to ``receive(name, tensor)``.

    Feature maps are NCHW, logits and predictions (N, classes). They come one at a time, as they are
    computed, so that a receiver which drops them never holds more than one.
    """

    def with_predictions(name: str, output: Tensor) -> None:
        receive(name, output)
        if name == "Logits":
            receive("Predictions", output.softmax(1))

    def hook(names: list[str]) -> Callable[[nn.Module, object, Tensor], None]:
        def forward_hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
            output = output if isinstance(output, Tensor) else output[0]  # the inner map of a block is the second
            for name in names:
                with_predictions(name, output)

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


def endpoints(model: Whole, x: Tensor) -> dict[str, Tensor]:
    """Run ``model`` on ``x`` (N, C, H, W) and return every endpoint by TensorFlow's name."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), capture(model, found.__setitem__):
        model(x)
    return found
