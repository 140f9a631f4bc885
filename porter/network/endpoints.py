"""TensorFlow's endpoint names (``layer_5/depthwise_output``) and the modules that they are the outputs of."""

from __future__ import annotations

from porter.network.layers import layers
from porter.network.network import Network

CLASS_ENDPOINTS = ("Logits", "Predictions")  # of shape (N, classes)


def endpoint_modules(network: Network, classes: int = 1) -> dict[str, str]:
    """Endpoint name -> the module whose output it is, in the order of computation.

    ``Predictions`` (softmax of the logits) belongs to no module and is left to ``capture``.
    """
    return {output.endpoint: output.module for layer in layers(network, classes) for output in layer.outputs}


def endpoint_names(network: Network, classes: int) -> list[str]:
    """Every endpoint in the order of computation, the softmax of the logits at the end where there are ``classes``."""
    chances = ["Predictions"] if classes and network.inner_map is None else []
    return [*endpoint_modules(network, classes), *chances]
