"""One step of training with Keras's own model of a file, all layers trainable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.network.node import map_sizes
from porter.network.nodes import nodes
from porter.parity.references.keras_model import layers_of, of_model, open_keras, values_at
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Reference, for_file
from porter.parity.references.training_step import STATISTICS, Trained, in_both, judged, measured
from porter.port import Port
from porter.sources.keras_config import NOTHING


def keras_training(port: Port, drop_class: int | None) -> Reference:
    """The step with Keras's model; see training_step.

    Keras averages the batch's own variance where TensorFlow's fused operation, slim and PyTorch have n / (n - 1) of it:
    the moving variances are given as those have them. Random layers are off. Raises as ``open_keras`` does.
    """
    tf, opened = tensorflow(), open_keras(port)
    wanted = judged(port.network, port.classes)
    if any(name not in opened.places for name in wanted):
        raise ParityError(f"{port.checkpoint.given}: Keras's model has no {', '.join(wanted)}; use the reference tf.nn")

    def step(images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        model = opened.models[dtype]
        kept = model.get_weights()
        layers = dict(layers_of(model))
        model.trainable = True
        for layer in layers.values():
            if type(layer).__name__ in NOTHING:
                layer.call = lambda x, *_, **__: x
        own = {
            f"{at}/{weight.name.rpartition('/')[2].partition(':')[0]}": weight
            for at, layer in layers.items()
            if not hasattr(layer, "layers")
            for weight in layer.weights
        }
        variables = {one.target: Trained(own[opened.sources[one.target]], one.axes) for one in port.plan.steps}
        given = for_file(images, port.white).astype(dtype)
        at = {name: opened.places[name] for name in wanted}
        before = {name: np.asarray(one.variable) for name, one in variables.items()}

        def outputs() -> dict[str, Any]:
            found = values_at(opened.library, model, given, at, training=True)
            return {name: tf.reshape(x, [len(images), -1]) if wanted[name] else x for name, x in found.items()}

        found = measured(tf, port, drop_class, outputs, variables)
        for norm, count in _positions(port, images).items():
            layer = layers[opened.sources[f"{norm}.running_mean"].rpartition("/")[0]]
            rate = 1 - layer.momentum
            # Keras 2 rounds the rate to float32
            used = float(np.float32(rate)) if hasattr(layer, "fused") else rate
            for entry in (f"{norm}.{part}" for part in STATISTICS if rate):
                batch = before[entry] + (found[entry] - before[entry]) / used
                if entry.endswith("running_var") and not getattr(layer, "fused", False):
                    batch *= count / (count - 1)
                found[entry] = before[entry] + rate * (batch - before[entry])
        model.set_weights(kept)
        return found

    return replace(of_model(port, opened), run=in_both(tf, step))


def _positions(port: Port, images: np.ndarray) -> dict[str, int]:
    """How many values of each channel a batch norm sees, by its module."""
    every = nodes(port.network, port.classes)
    sizes = map_sizes(every, images.shape[1], images.shape[2])
    return {node.norm: len(images) * sizes[node.name][0] * sizes[node.name][1] for node in every if node.norm}
