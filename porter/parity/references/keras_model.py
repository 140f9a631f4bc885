"""keras.applications.MobileNetV3* running the file, loaded by Keras itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables, layer_scopes
from porter.mapping.schema import Keras
from porter.network.nodes import LOGITS, nodes
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Endpoints, Reference, Values, noise_between
from porter.port import Port


def keras_model(port: Port) -> Reference:
    """Keras's model of the port's variant with the port's file in it; images in [-1, 1] at the training size.

    Raises ParityError if Keras has no such model or refuses the file.
    """
    tensorflow()  # Keras's back end; says how to install it
    import keras

    path, spec, size = port.checkpoint.path, port.mapping.keras, port.mapping.input.size
    if spec is None:
        raise ParityError(f"{path}: keras.applications has no {port.mapping.variant}; use the reference tf.nn")
    top = port.classes > 0
    taps = {}
    for dtype in ("float64", "float32"):
        taps[dtype] = _tap(keras, port, spec, size, dtype)

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        exact, single = (
            dict(zip(taps[dtype][0], taps[dtype][1](images.astype(dtype), training=False), strict=True))
            for dtype in ("float64", "float32")
        )
        for name in names:
            if name in exact:
                double = np.asarray(exact.pop(name))
                yield name, Values(double, noise_between(np.asarray(single.pop(name)), double))

    missing = () if top else ("Logits", "Predictions")
    return Reference(f"Keras {keras.__version__} ({path.name})", run, size=(size, size), missing=missing)


def _tap(keras: Any, port: Port, spec: Keras, size: int, dtype: str) -> tuple[list[str], Any]:
    """Endpoint names, and the model that gives them in ``dtype``."""
    path, top = port.checkpoint.path, port.classes > 0
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(dtype)
        model = getattr(keras.applications, spec.model)(
            input_shape=(size, size, port.network.channels),
            alpha=spec.alpha,
            minimalistic=spec.minimalistic,
            include_top=top,
            weights=None,
            classes=port.classes or 1,
            include_preprocessing=False,
        )
        model.load_weights(str(path))  # only weights: a stored configuration may hold code
    except Exception as error:  # Keras raises any exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ParityError(f"{path}: Keras cannot load it ({reason}); use the reference tf.nn") from error
    finally:
        keras.config.set_dtype_policy(before)
    outputs = dict(_endpoints(model, port, top))
    return list(outputs), keras.Model(model.input, list(outputs.values()))


def _endpoints(model: Any, port: Port, top: bool) -> list[tuple[str, Any]]:
    """Endpoint -> Keras tensor, by the layer names in ``mappings/keras.yaml``.

    Activations and additions have no names there: they follow a batch norm.
    """
    named = load_variant(port.mapping.variant, "keras")
    scopes = layer_scopes(expected_variables(named, port.network, classes=1))
    found: list[tuple[str, Any]] = []
    at = ""
    for node in nodes(port.network, classes=1):
        at = scopes[node.norm or node.layer] if node.layer else at
        if node.operation == "mean" or (not top and node.operation in ("dense", "softmax")):
            continue
        layer = None if node.operation == "softmax" else model.get_layer(at)
        follows = node.activation or node.operation == "add" or node.name == LOGITS  # a reshape, of the logits
        output = model.output if layer is None else layer.output
        if layer is not None and follows:
            output = layer._outbound_nodes[0].operation.output
        found += [(endpoint, output) for endpoint in node.endpoints if endpoint != "global_pool"]
    return found
