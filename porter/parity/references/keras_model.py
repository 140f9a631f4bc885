"""keras.applications.MobileNetV3* running the file, loaded by Keras itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.mapping.schema import Keras
from porter.parity.references.live_tensorflow import tensorflow
from porter.parity.references.reference import Endpoints, Reference, Values, noise_between
from porter.port import Port


def keras_model(port: Port) -> Reference:
    """Keras's own model of the port's variant with the port's file in it, in [-1, 1] at the training size.

    Raises ParityError where Keras has no such model or does not take the file.
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
    """Names of endpoints and the model that gives them, computing in ``dtype``."""
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
        model.load_weights(str(path))  # weights alone: a stored configuration, which may hold code, is not read
    except Exception as error:  # Keras raises every kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ParityError(f"{path}: Keras cannot load it ({reason}); use the reference tf.nn") from error
    finally:
        keras.config.set_dtype_policy(before)
    outputs = dict(_endpoints(model, port, top))
    return list(outputs), keras.Model(model.input, list(outputs.values()))


def _endpoints(model: Any, port: Port, top: bool) -> list[tuple[str, Any]]:
    """Endpoint -> Keras tensor. Activations have no names of their own: they are what follows a batch norm."""
    network = port.network

    def after(name: str) -> Any:
        return model.get_layer(name)._outbound_nodes[0].operation.output

    found = [("layer_1", after("conv_bn"))]
    for block in network.blocks:
        if block.expands:
            found.append((f"{block.endpoint}/expansion_output", after(f"{block.scope}_expand_bn")))
        found.append((f"{block.endpoint}/depthwise_output", after(f"{block.scope}_depthwise_bn")))
        last = "add" if block.residual else "project_bn"
        output = model.get_layer(f"{block.scope}_{last}").output
        found += [(f"{block.endpoint}/output", output), (block.endpoint, output)]
    last_map = after("conv_1_bn")
    found.append((network.endpoint_after_blocks(0), last_map))
    if top:
        found.append((network.endpoint_after_blocks(2), after("conv_2")))
        found.append(("Logits", after("logits")))
        found.append(("Predictions", model.output))
    return found
