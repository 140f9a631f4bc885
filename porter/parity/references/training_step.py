"""One step of training in TensorFlow: statistics of batch norms, outputs, loss and every gradient.

Values have the names and axes of state-dict entries, and come in the order of computation. Dropout is off. Labels count
up over the rows of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.mapping.axes import to_target
from porter.mapping.rules import expected_variables
from porter.network.network import Network
from porter.network.node import map_sizes
from porter.network.nodes import endpoint_names, nodes
from porter.parity.references.keras_model import layers_of, of_model, open_keras, values_at
from porter.parity.references.live_tensorflow import stored_values, tensorflow
from porter.parity.references.reference import Endpoints, Reference, Values, for_file, noise_between
from porter.parity.references.tf_nn import Net, forward, slim_names
from porter.port import Port
from porter.sources.keras_config import NOTHING

GRADIENT, LOSS = "gradient of ", "loss"
STATISTICS = ("running_mean", "running_var")


class Trained(NamedTuple):
    """A TensorFlow variable, and how its axes become those of an entry; None where it has PyTorch's already."""

    variable: Any
    axes: str | None = None

    def to_target(self, tensor: Any) -> np.ndarray:
        """``tensor``, of the variable's shape, in the entry's axes."""
        values = np.asarray(tensor)
        return values if self.axes is None else to_target(self.axes, values)


def judged(network: Network, classes: int) -> dict[str, int]:
    """The endpoints that the loss is a sum over, each with its number of classes.

    Rows of classes count with their mean cross entropy. Where there are 0 classes, half of the mean square counts.
    """
    if network.head is not None:
        predictors = network.head.predictors(nodes(network, classes))
        return {name: classes if by_class else 0 for name, by_class in predictors.items()}
    return {"Logits": classes} if classes else {endpoint_names(network, classes)[-1]: 0}


def tf_nn_training(port: Port, drop_class: int | None) -> Reference:
    """The step with the ``tf.nn`` graph and slim's batch norms; ``drop_class`` takes no part in the loss."""
    tf = tensorflow()
    stored, names = stored_values(port.checkpoint), slim_names(port)
    expected = expected_variables(port.mapping, port.network, port.classes)
    tail = tuple(f"{port.network.tail_layer(number)}." for number in range(len(port.network.tail)))
    slim = {want.target for want in names.values() if not want.target.startswith(tail)}

    def step(images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        variables: dict[str, Trained] = {}
        for want in expected:  # a tail's lie in PyTorch's axes
            values = stored(want.source).astype(dtype)
            held = values if want.target in slim else to_target(want.axes, values)
            variables[want.target] = Trained(tf.Variable(held), want.axes if want.target in slim else None)

        def entry(name: str) -> Any:
            constants = port.mapping.constants
            return tf.constant(constants[name], dtype) if name in constants else variables[name].variable

        def outputs() -> dict[str, Any]:
            net = Net(tf, port.network, port.classes > 0, entry, partial(_trained, tf))
            layers = forward(net, lambda name: entry(names[name].target), lambda _at, x: x, tf.constant(images, dtype))
            at = judged(port.network, port.classes)
            return {name: tensor for name, tensor in layers if name in at}

        return measured(tf, port, drop_class, outputs, variables)

    return Reference("tf.nn graph in training mode", in_both(tf, step))


def _trained(tf: Any, x: Any, mean: Any, variance: Any, beta: Any, gamma: Any, epsilon: float, decay: float) -> Any:
    """slim's batch norm in training: the batch's own statistics, and the moving ones brought nearer to them.

    TensorFlow's fused operation, which has no float64, gives n / (n - 1) of the batch's variance.
    """
    if x.dtype == tf.float32 and x.shape.rank == 4:
        fused = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        x, batch_mean, batch_variance = fused.y, fused.batch_mean, fused.batch_variance
    else:
        count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
        batch_mean, batch_variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        x = tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, gamma, epsilon)
        batch_variance *= count / (count - 1)
    mean.assign_sub((mean - batch_mean) * (1 - decay))
    variance.assign_sub((variance - batch_variance) * (1 - decay))
    return x


def measured(
    tf: Any, port: Port, drop_class: int | None, outputs: Callable[[], dict[str, Any]], variables: dict[str, Trained]
) -> dict[str, np.ndarray]:
    """The step of ``outputs``, which gives the judged endpoints (NHWC or (N, classes))."""
    weights = {name: one for name, one in variables.items() if not name.endswith(STATISTICS)}
    with tf.GradientTape() as tape:
        given = outputs()
        if drop_class is not None:
            kept = [number for number in range(port.classes) if number != drop_class]
            given = {name: tf.gather(values, kept, axis=1) for name, values in given.items()}
        loss = _loss(tf, port, given, drop_class)
    gradients = tape.gradient(loss, {name: one.variable for name, one in weights.items()})
    found = {name: one.to_target(one.variable) for name, one in variables.items() if name.endswith(STATISTICS)}
    found |= {name: np.asarray(values) for name, values in given.items()}
    found[LOSS] = np.asarray(loss).reshape(1)
    for name in reversed(weights):
        found[GRADIENT + name] = weights[name].to_target(gradients[name])
    return found


def _loss(tf: Any, port: Port, given: dict[str, Any], drop_class: int | None) -> Any:
    total = 0.0
    for name, classes in judged(port.network, port.classes).items():
        values = given[name]
        if not classes:
            total += tf.reduce_mean(tf.square(values)) / 2
            continue
        classes -= drop_class is not None
        rows = tf.reshape(values, [-1, classes])
        labels = tf.range(tf.shape(rows)[0]) % classes
        if port.network.predictions == "sigmoid":
            wanted = tf.one_hot(labels, classes, dtype=rows.dtype)
            total += tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=wanted, logits=rows))
        else:
            total += tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=rows))
    return total


def in_both(
    tf: Any, step: Callable[[np.ndarray, str], dict[str, np.ndarray]]
) -> Callable[[np.ndarray, Sequence[str]], Endpoints]:
    """``step`` in float64 and float32, as a reference runs."""

    def run(images: np.ndarray, _names: Sequence[str]) -> Endpoints:
        with tf.device("/CPU:0"):
            exact, single = step(images, "float64"), step(images, "float32")
        for name, values in exact.items():
            yield name, Values(values, noise_between(single[name], values))

    return run


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
