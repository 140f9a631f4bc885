"""TensorFlow's endpoint names (``layer_5/depthwise_output``) and the modules that they are the outputs of."""

from __future__ import annotations

from porter.architecture.network import Network

CLASS_ENDPOINTS = ("Logits", "Predictions")  # of shape (N, classes)


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


def endpoint_names(network: Network, classes: int) -> list[str]:
    """Every endpoint in the order of computation, the softmax of the logits at the end where there are ``classes``."""
    return [*endpoint_modules(network, classes), *(["Predictions"] if classes else [])]
