"""TensorFlow's endpoint names (``layer_5/depthwise_output``) on our modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from porter.mapping.network import Network
from porter.network.deployment import Deployed
from porter.network.mobilenet_v3 import MobileNetV3


def endpoint_modules(network: Network, classes: int = 1) -> dict[str, str]:
    """Endpoint name -> the module whose output it is, in the order of computation.

    ``Predictions`` (softmax of the logits) belongs to no module and is left to ``capture``.
    """
    modules = {"layer_1": "act1"}
    for block in network.blocks:
        if block.expands:
            modules[f"{block.endpoint}/expansion_output"] = f"{block.module}.act1"
        if block.depthwise:
            modules[f"{block.endpoint}/depthwise_output"] = f"{block.module}.act{1 + block.expands}"
        modules[f"{block.endpoint}/output"] = block.module
        modules[block.endpoint] = block.module
    modules[network.endpoint_after_blocks(0)] = network.last_act
    if network.pools_in_layers:
        modules[network.endpoint_after_blocks(1)] = "global_pool"
    else:
        modules["global_pool"] = "global_pool"
    if network.head:
        modules[network.endpoint_after_blocks(2)] = "act2"
        modules["global_pool"] = "act2"
    if classes:
        modules["Logits"] = "classifier"
    return modules


@contextmanager
def capture(model: MobileNetV3 | Deployed, receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, every forward pass of ``model`` hands each endpoint to ``receive(name, tensor)``.

    Feature maps are NCHW, logits and predictions (N, classes). They come one at a time, as they are
    computed, so that a receiver which drops them never holds more than one.
    """

    def with_predictions(name: str, output: Tensor) -> None:
        receive(name, output)
        if name == "Logits":
            receive("Predictions", output.softmax(1))

    if isinstance(model, Deployed):
        model.receive = with_predictions
        try:
            yield
        finally:
            model.receive = None
        return

    def hook(names: list[str]) -> Callable[[nn.Module, object, Tensor], None]:
        def forward_hook(_module: nn.Module, _args: object, output: Tensor) -> None:
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


def endpoints(model: MobileNetV3, x: Tensor) -> dict[str, Tensor]:
    """Run ``model`` on ``x`` (N, C, H, W) and return every endpoint by TensorFlow's name."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), capture(model, found.__setitem__):
        model(x)
    return found
