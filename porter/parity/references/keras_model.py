"""The file's own Keras model, built by Keras from the file's configuration, from 8-bit pixels on."""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from porter.errors import ParityError
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_names
from porter.parity.references.graphs import LOGITS_ENDPOINT, PREDICTIONS, places
from porter.parity.references.live_tensorflow import reason, tensorflow
from porter.parity.references.reference import (
    Endpoints,
    Reference,
    Values,
    check_preprocessing,
    for_file,
    noise_between,
    told_pixels,
)
from porter.parity.references.tf_heads import activated
from porter.port import Port
from porter.process import temporary_folder
from porter.sources.keras import WEIGHTS_MEMBER, read_config
from porter.sources.keras_config import KNOWN, MODELS, Config, stored_graph, trainable
from porter.sources.stored_graph import StoredGraph

MOST_DEPTH = 64  # of a configuration; a model in a model in a model takes 30
TENSOR = "__keras_tensor__"
# Where Keras 3 and Keras 2 keep layers and operations; other modules hold functions that could do anything
MODULES = re.compile(
    r"keras(\.(layers|models))?|keras\.src\.(models|ops|layers)(\.\w+)*|tf_keras\.src\.(layers|engine)(\.\w+)*"
)
# Functions of TensorFlow that Keras 2 writes for arithmetic on tensors
FUNCTIONS = (
    *(f"__operators__.{name}" for name in ("add", "sub", "mul", "truediv")),
    *(f"math.{name}" for name in ("add", "subtract", "multiply", "divide", "truediv", "sigmoid")),
    *(f"nn.{name}" for name in ("relu", "relu6", "softmax", "sigmoid")),
)
LEFT_OUT = ("_initializer", "_regularizer", "_constraint", "build_config", "compile_config")


class Opened(NamedTuple):
    """Keras, the file's model in float64 and float32, its graph, and the graph's variables by entry.

    ``places`` are paths of layers by endpoint, empty for the whole model's output. ``activation`` is that of the
    classifier's last layer, where it computes one itself. It is taken out of the models, which end in logits then.
    """

    library: Any
    models: dict[str, Any]
    graph: StoredGraph
    sources: dict[str, str]
    places: dict[str, str]
    activation: Any


def open_keras(port: Port) -> Opened:
    """Keras's own model of the port's file.

    Raises ParityError if its configuration names anything but Keras's own layers, or Keras refuses it.
    """
    tensorflow()  # Keras's back end; says how to install it
    path = port.checkpoint.path
    config, graph = read_config(path), port.checkpoint.graph
    sources = {step.target: step.source for step in port.plan.steps}
    if config is None or graph is None:
        config, graph, sources = _application(port)
    library = _library(config, path)
    models = {dtype: _load(library, config, path, dtype) for dtype in ("float64", "float32")}
    if port.checkpoint.format == "bundle":
        _restore(models["float32"], path)
        models["float64"].set_weights(models["float32"].get_weights())
    averaged = trainable(config, port.checkpoint) if port.checkpoint.of_optimizer else []
    for model in models.values():
        for _, layer in layers_of(model):
            if getattr(layer, "activation", None) is library.activations.gelu:  # has its constant in float32
                layer.activation = partial(activated, tensorflow(), "gelu")
        for variable, name in zip(model.trainable_variables, averaged, strict=False):
            variable.assign(port.checkpoint[name].read())
    activation, found = None, places(port, graph, sources)
    at = {endpoint: "" if one == graph.outputs[0] else one for endpoint, one in found.items()}
    if port.classes and LOGITS_ENDPOINT not in at:
        weight = sources[f"{port.network.class_layers[0]}.weight"]
        [operation] = (one for one in graph.layers() if one.weights["weight"] == weight)
        at[LOGITS_ENDPOINT] = operation.name.removesuffix(":linear")
        for model in models.values():
            layer = dict(layers_of(model))[at[LOGITS_ENDPOINT]]
            activation, layer.activation = layer.activation, library.activations.linear
    return Opened(library, models, graph, sources, at, activation)


def keras_model(port: Port) -> Reference:
    """Keras's own model, in float64 and float32, on the same pixels as the port. Raises as ``open_keras`` does."""
    return of_model(port, open_keras(port))


def of_model(port: Port, opened: Opened) -> Reference:
    """The reference that ``opened`` is."""
    library, models, graph, sources, at, activation = opened
    path = port.checkpoint.path
    before_stem = _before_stem(graph, sources)
    spec, white = port.mapping.input, port.white

    def run(images: np.ndarray, names: Sequence[str]) -> Endpoints:
        given = for_file(images, white)
        wanted = {name: at[name] for name in names if name in at}
        if not wanted:
            return
        fetched = {**wanted, LOGITS_ENDPOINT: at[LOGITS_ENDPOINT]} if activation else wanted
        exact, single = (values_at(library, models[dtype], given.astype(dtype), fetched) for dtype in models)
        if activation:
            for found in (exact, single):
                found[PREDICTIONS] = activation(found[LOGITS_ENDPOINT])
        for name in wanted:
            double, rounded = np.asarray(exact.pop(name)), np.asarray(single.pop(name))
            if name in CLASS_ENDPOINTS:
                double, rounded = (values.reshape(len(values), -1) for values in (double, rounded))
            yield name, Values(double, noise_between(rounded, double))

    def prepare(images: np.ndarray) -> np.ndarray:
        """What the first convolution gets, by the file's own preprocessing, which must be the port's."""
        given = for_file(images, white)
        if before_stem is None:
            return given
        theirs = np.asarray(values_at(library, models["float64"], given, {"": before_stem})[""])
        check_preprocessing(theirs, images, port, path)
        return theirs

    missing = tuple(name for name in endpoint_names(port.network, port.classes) if name not in at)
    name = f"Keras {library.__version__} ({path.name})"
    return Reference(name, run, size=spec.sides, missing=missing, prepare=prepare, takes=told_pixels(white))


def _library(config: Config, path: Path) -> Any:
    """Keras 3, or Keras 2 for what it wrote: there, the uses of layers are lists."""
    if not _of_keras_2(config):
        import keras

        return keras
    try:
        import tf_keras  # type: ignore[import-untyped]
    except ImportError as error:
        raise ParityError(
            f"{path}: was written by Keras 2, which is not installed (pip install tf_keras); use the reference tf.nn"
        ) from error
    return tf_keras


def _of_keras_2(config: Config) -> bool:
    layers = config["config"]["layers"]
    return any(
        _of_keras_2(layer) if "layers" in layer["config"] else isinstance((layer.get("inbound_nodes") or [{}])[0], list)
        for layer in layers
    )


def _plain(found: Any, dtype: str, path: Path, depth: int = 0) -> Any:
    """A configuration that computes in ``dtype`` and holds nothing but Keras's own layers, tensors and numbers.

    What only training or new weights need is left out. Raises ParityError for any other object: loading it could run
    code.
    """
    if depth > MOST_DEPTH:
        raise ParityError(f"{path}: its configuration is nested without end")
    if isinstance(found, list):
        return [_plain(value, dtype, path, depth + 1) for value in found]
    if not isinstance(found, dict):
        return found
    kind, module, config = (found.get(key) for key in ("class_name", "module", "config"))
    if kind == "function" and isinstance(config, str):  # an activation
        return config
    if kind is not None:
        function = config.get("function") if isinstance(config, dict) else None
        own = module is None or (isinstance(module, str) and MODULES.fullmatch(module) is not None)
        registered = found.get("registered_name") in (None, kind)
        if (
            not own
            or not registered
            or kind not in (*KNOWN, TENSOR)
            or (kind == "TFOpLambda" and function not in FUNCTIONS)
        ):
            what = f"{kind} of {module}" if function is None else f"{kind} {function}"
            raise ParityError(f"{path}: its configuration has {what[:80]!r}, which is not run; use the reference tf.nn")
    return {
        key: dtype if key == "dtype" else _plain(value, dtype, path, depth + 1)
        for key, value in found.items()
        if not str(key).endswith(LEFT_OUT)
    }


def _with_modules(found: Any) -> Any:
    """A configuration with the modules of its classes, which Keras 3 leaves out in an ``.h5``.

    Without them it takes the operation in ``x + 3`` for the layer Add, and cannot load it. A layer says whether it is
    trainable; an operation does not.
    """
    if isinstance(found, list):
        return [_with_modules(value) for value in found]
    if not isinstance(found, dict):
        return found
    made = {key: _with_modules(value) for key, value in found.items()}
    kind = found.get("class_name")
    if kind not in KNOWN or found.get("module") is not None:
        return made
    layer = kind == "InputLayer" or "trainable" in found["config"]
    module = "keras.layers" if layer else "keras.src.ops.numpy"
    if kind in MODELS:
        module, made["class_name"] = "keras", kind.replace("Model", "Functional")
        module = module if kind == "Sequential" else "keras.src.models.functional"
    return made | {"module": module, "registered_name": None}


def _load(library: Any, config: Config, path: Path, dtype: str) -> Any:
    """The model that ``config`` describes, in ``dtype``, with the file's weights."""
    plain = _plain(config, dtype, path)
    if not _of_keras_2(config):
        plain = _with_modules(plain)
    before = library.mixed_precision.global_policy() if hasattr(library, "mixed_precision") else None
    try:
        model = library.models.model_from_json(json.dumps(plain))
        with temporary_folder() as folder:
            weights = path
            if not path.is_file():  # a checkpoint's prefix
                return model
            if zipfile.is_zipfile(path):
                weights = Path(folder) / WEIGHTS_MEMBER
                with zipfile.ZipFile(path) as archive:
                    weights.write_bytes(archive.read(WEIGHTS_MEMBER))
            model.load_weights(str(weights))
    except Exception as error:  # Keras raises any exception
        raise ParityError(f"{path}: Keras cannot load it ({reason(error)}); use the reference tf.nn") from error
    finally:
        if before is not None:
            library.mixed_precision.set_global_policy(before)
    return model


def _restore(model: Any, prefix: Path) -> None:
    """Fill ``model`` from the checkpoint ``prefix``, in which it is an attribute or the root."""
    tf = tensorflow()
    names = [name for name, _ in tf.train.list_variables(str(prefix))]
    root = tf.train.Checkpoint(model=model) if any(name.startswith("model/") for name in names) else None
    try:
        (root or tf.train.Checkpoint(model)).read(str(prefix)).assert_existing_objects_matched().expect_partial()
    except AssertionError as error:
        raise ParityError(f"{prefix}: does not hold Keras's whole model as `model`; use the reference tf.nn") from error


def _application(port: Port) -> tuple[Config, StoredGraph, dict[str, str]]:
    """keras.applications' network for a file of weights alone, as configuration, graph, and variables by entry."""
    import keras

    path, spec, top = port.checkpoint.path, port.mapping.keras, port.classes > 0
    if spec is None or (port.network.embedding and not top) or port.network.backbone:
        raise ParityError(f"{path}: keras.applications has no such network; use the reference tf.nn")
    model = getattr(keras.applications, spec.model)(
        input_shape=(*port.mapping.input.sides, port.network.channels),
        alpha=spec.alpha,
        minimalistic=spec.minimalistic,
        include_top=top,
        weights=None,
        classes=port.classes or 1,
        include_preprocessing=False,
    )
    config = json.loads(model.to_json())
    named = load_variant(port.mapping.variant, "keras")
    expected = expected_variables(named, port.network, port.classes)
    sources = {want.target: want.source for want in expected}
    names: Any = dict.fromkeys(sources.values())  # a graph needs no more of variables
    return config, stored_graph(config, names), sources


def _before_stem(graph: StoredGraph, sources: Mapping[str, str]) -> str | None:
    """The layer that gives what the first convolution gets, before padding; None where that is the image."""
    [stem] = (one for one in graph.layers() if one.weights["weight"] == sources["conv_stem.weight"])
    path = [one for one in graph.path(stem) if one.kind != "pad"]
    return path[-1].name if len(path) > 1 else None


def layers_of(model: Any, scope: str = "") -> Iterator[tuple[str, Any]]:
    """The layers of ``model`` and of the models in it, by path."""
    for layer in model.layers:
        yield f"{scope}{layer.name}", layer
        if hasattr(layer, "layers"):
            yield from layers_of(layer, f"{scope}{layer.name}/")


def values_at(
    library: Any, model: Any, given: Any, wanted: Mapping[str, str], training: bool = False
) -> dict[str, Any]:
    """The tensors that layers give by name; ``wanted`` are paths of layers, empty for the model's output.

    Models in the model run on what they get in it.
    """
    layers = {layer.name: layer for layer in model.layers}
    direct: dict[str, Any] = {}
    inner: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, path in wanted.items():
        if not path or path in layers:
            direct[name] = layers[path].output if path else model.outputs[0]
            continue
        outer = next((one for one in layers if path.startswith(f"{one}/")), None)
        if outer is None:
            raise ParityError(f"Keras's model has no layer {path}")
        inner[outer][name] = path.removeprefix(f"{outer}/")
    tap = library.Model(model.inputs, [*direct.values(), *(_entry(layers[name]) for name in inner)])
    computed = _listed(tap(given, training=training))
    found = dict(zip(direct, computed, strict=False))
    for (name, within), value in zip(inner.items(), computed[len(direct) :], strict=True):
        found |= values_at(library, layers[name], value, within, training)
    return found


def _entry(layer: Any) -> Any:
    """What a model gets where it is used in another."""
    return _listed(layer._inbound_nodes[-1].input_tensors)[0]


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]
