"""A Keras configuration as the operations that it states. Nothing of it is run: layers are read by their class names.

Sources: keras/src/models/functional.py (Keras 3) and tf_keras/src/engine/functional.py (Keras 2).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from porter.sources.stored_graph import StoredGraph, StoredOperation
from porter.sources.variable import Variable

Config = Mapping[str, Any]
MODELS = ("Functional", "Sequential", "Model")
MAX_CONFIG = 2 << 20  # bytes; large_100 has 200 KB; nested lists take 25 times their text in memory
MOST_DEPTH = 16  # of models in models
MOST_CHANNELS = 16  # of an image
MOST_USES = 4  # of the layers of a configuration, which its models may use more than once
# The same values come out at inference; a random layer works in training only
NOTHING = (
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization"),
    *("Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast"),
    *("RandomBrightness", "RandomCrop", "RandomHeight", "RandomWidth", "RandomShear", "RandomColorJitter", "Pipeline"),
)
# Keras 2's hard sigmoid has another slope and shift: clip(0.2 x + 0.5, 0, 1)
ACTIVATIONS_3 = {"hard_silu": "hard_swish", "hard_swish": "hard_swish", "hard_sigmoid": "hard_sigmoid"}
ACTIVATION_LAYERS = ("ReLU", "LeakyReLU", "ELU", "Softmax", "Activation")
LEAK = 0.2  # of the activation "leaky_relu"; the layer LeakyReLU states its own
SIXTH = 1 / 6
TRAINABLE = ("kernel", "depthwise_kernel", "bias", "gamma", "beta")  # variables of layers, in Keras's order
KNOWN = (
    *MODELS,
    *("InputLayer", "Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization", "ReLU", "LeakyReLU", "ELU", "Softmax"),
    *("Activation", "Rescaling", "Normalization", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "AveragePooling2D"),
    *("MaxPooling2D", "Flatten", "Reshape", "ZeroPadding2D", "Concatenate", "UpSampling2D", "Resizing"),
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Argmax", "TFOpLambda"),
    *NOTHING,
)  # layers that are read
ARITHMETIC = {"add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide", "truediv": "divide"}
ARITHMETIC |= {"true_divide": "divide", "sub": "subtract", "mul": "multiply"}
RESHAPING = ("Flatten", "Reshape")
POOLINGS = {"AveragePooling2D": "average_pool", "MaxPooling2D": "max_pool"}
GLOBAL = {"GlobalAveragePooling2D": "mean", "GlobalMaxPooling2D": "max"}


def weight_paths(config: Config) -> dict[str, list[str]]:
    """Groups of a ``.weights.h5`` -> the layer's name, and its variables' where the configuration decides on them.

    Layers of models in a model lie below the model's name: ``layers/functional/layers/conv2d_1`` ->
    ``MobileNetV3Small/conv``. Raises KeyError and the like on a damaged configuration.
    """
    found: dict[str, list[str]] = {}

    def walk(layers: Sequence[Config], group: str, scope: str, depth: int) -> None:
        counts: Counter[str] = Counter()
        for layer in layers:
            kind = _snake_case(layer["class_name"])
            at = f"{group}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
            counts[kind] += 1
            name = scope + _name(layer)
            found[at] = [name, *(_norm_weights(layer["config"]).values() if kind == "batch_normalization" else ())]
            if _is_model(layer) and depth < MOST_DEPTH:
                walk(layer["config"]["layers"], f"{at}/", f"{name}/", depth + 1)

    walk(config["config"]["layers"], "", "", 0)
    return found


def averages(config: Any, *path: str) -> bool:
    """Whether the optimizer at ``path`` of a configuration keeps moving averages of the weights."""
    for part in (*path, "config"):
        config = config.get(part) if isinstance(config, dict) else None
    return isinstance(config, dict) and config.get("use_ema") is True


def _layers(config: Config, scope: str = "", depth: int = 0) -> Iterator[tuple[Config, str]]:
    """The layers of ``config`` and of its models in their order, each with its name below theirs."""
    for layer in config["config"]["layers"] if depth <= MOST_DEPTH else ():
        name = scope + _name(layer)
        yield layer, name
        if _is_model(layer):
            yield from _layers(layer, f"{name}/", depth + 1)


def trainable(config: Config, variables: Container[str]) -> list[str]:
    """The variables that an optimizer trains, in Keras's order."""
    owners = [name for layer, name in _layers(config) if layer["config"].get("trainable", True)]
    return [name for owner in owners for local in TRAINABLE if (name := f"{owner}/{local}") in variables]


def layer_variables(config: Config, names: Iterable[str]) -> dict[str, str]:
    """``names`` of variables in a checkpoint, below their layer and at most one model -> their names in a Keras file.

    Those of no layer, or of several, keep theirs.
    """
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for layer, path in _layers(config):
        paths[_name(layer)].append(path)
    found: dict[str, str] = {}
    for name in names:
        *owner, local = name.split("/")[-MOST_DEPTH:]
        ends = ("/".join(owner[start:]) for start in range(len(owner)))
        of_layer = next((paths[end] for end in ends if end in paths), ())
        found[name] = f"{of_layer[0]}/{local}" if len(of_layer) == 1 else name
    counts = Counter(found.values())
    return {name: new if counts[new] == 1 else name for name, new in found.items()}


def stored_graph(config: Config, variables: Mapping[str, Variable]) -> StoredGraph:
    """The operations of ``config``, whose weights are ``variables``.

    Raises KeyError, TypeError, IndexError or ValueError on a damaged configuration.
    """
    reader = _Reader(variables, MOST_USES * sum(1 for _ in _layers(config)))
    outputs = reader.model(config, "", None, 0)
    return StoredGraph(reader.operations, outputs)


def _is_model(layer: Config) -> bool:
    return layer["class_name"] in MODELS and "layers" in layer["config"]


def _uses_before(layer: Config) -> int:
    """How many uses of a layer the configuration leaves out: Keras 2 counts a model's on its own images."""
    keras_2 = any(isinstance(node, list) for node in layer.get("inbound_nodes", ()))
    inner = layer["config"]["layers"] if keras_2 and _is_model(layer) else ()
    return 1 if inner and inner[0]["class_name"] == "InputLayer" else 0


def _name(layer: Config) -> str:
    name = layer.get("name") or layer["config"]["name"]
    if not isinstance(name, str):
        raise ValueError("a layer without a name")
    return name


def _snake_case(name: str) -> str:
    """``DepthwiseConv2D`` -> ``depthwise_conv2d``, as in keras/src/utils/naming.py."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Reader:
    """Operations in the making; ``left`` more layers may be used."""

    def __init__(self, variables: Mapping[str, Variable], left: int) -> None:
        self.variables, self.left = variables, left
        self.operations: list[StoredOperation] = []
        self.names: Counter[str] = Counter()

    def model(self, config: Config, scope: str, given: Sequence[str] | None, depth: int) -> list[str]:
        """The values that a model gives for the values ``given`` (None: its own images)."""
        if depth > MOST_DEPTH:
            raise ValueError("models in models without end")
        layers = config["config"]["layers"]
        if config["class_name"] == "Sequential":
            last = list(given or ())
            for layer in layers:
                if layer["class_name"] == "InputLayer" and given:
                    continue
                last = last or ([] if layer["class_name"] == "InputLayer" else [self._image(layer, scope)])
                last = self.layer(layer, scope, last, (), depth)
            return last
        places = _ends(config["config"]["input_layers"])
        known: dict[tuple[str, int], list[str]] = {}
        if given is not None:
            known = {(name, 0): [value] for (name, _, _), value in zip(places, given, strict=False)}
        waiting = [(layer, number) for layer in layers for number in range(max(1, len(layer.get("inbound_nodes", ()))))]
        while waiting:  # Keras lists layers so that this takes one turn, but for layers that are shared
            later = []
            for layer, number in waiting:
                at = (_name(layer), number + _uses_before(layer))
                if at in known:
                    continue
                nodes = layer.get("inbound_nodes") or [None]
                inputs, constants = _arguments(nodes[number])
                if any((name, node) not in known for name, node, _ in inputs):
                    later.append((layer, number))
                    continue
                taken = [known[name, node][position] for name, node, position in inputs]
                known[at] = self.layer(layer, scope, taken, constants, depth)
                if _is_model(layer) and len(nodes) == 1:  # Keras 3 counts a model that is an output from 1
                    known[_name(layer), 1] = known[at]
            if len(later) == len(waiting):
                raise ValueError(f"layer {_name(later[0][0])} has inputs that no layer gives")
            waiting = later
        return [known[name, node][position] for name, node, position in _ends(config["config"]["output_layers"])]

    def _image(self, layer: Config, scope: str) -> str:
        shape = layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape") or ()
        sides = tuple(side if isinstance(side, int) else 0 for side in shape[1:3])
        window = (sides[0], sides[1]) if len(shape) == 4 else (0, 0)
        return self.add(f"{scope}{_name(layer)}:image", "image", (), window=window)

    def add(self, name: str, kind: str, inputs: Sequence[str], **facts: Any) -> str:
        """One operation; the name of its value."""
        self.names[name] += 1
        unique = name if self.names[name] == 1 else f"{name}:{self.names[name]}"
        self.operations.append(StoredOperation(unique, kind, tuple(inputs), **facts))
        return unique

    def layer(
        self, layer: Config, scope: str, inputs: Sequence[str], constants: Sequence[tuple[float, bool]], depth: int
    ) -> list[str]:
        """The values of one use of a layer."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("its models use their layers without end")
        kind, name = layer["class_name"], scope + _name(layer)
        if _is_model(layer):
            return self.model(layer, f"{name}/", inputs, depth + 1)
        if kind == "InputLayer":
            return [self._image(layer, scope)] if not inputs else list(inputs)
        if kind in NOTHING or (kind == "Activation" and _activation_of(layer)[0] == "linear"):
            return list(inputs[:1])
        return [self._operation(layer, name, inputs, constants)]

    def _operation(
        self, layer: Config, name: str, inputs: Sequence[str], constants: Sequence[tuple[float, bool]]
    ) -> str:
        kind, config = layer["class_name"], layer["config"]
        if kind in ("Conv2D", "DepthwiseConv2D", "Dense"):
            return self._with_weights(layer, name, inputs)
        if kind == "BatchNormalization":
            weights = {role: f"{name}/{local}" for role, local in _norm_weights(config).items()}
            epsilon, decay = float(config["epsilon"]), float(config["momentum"])
            return self.add(name, "batch_norm", inputs, weights=weights, epsilon=epsilon, decay=decay)
        if kind in ACTIVATION_LAYERS:
            activation, slope = _activation_of(layer)
            return self.add(name, activation, inputs, slope=slope)
        if kind == "Rescaling":
            scale, offset = (_numbers(config[key]) for key in ("scale", "offset"))
            scaled = self.add(f"{name}:scale", "multiply", inputs, constant=scale)
            return self.add(name, "add", (scaled,), constant=offset)
        if kind == "Normalization":
            return self._normalization(config, name, inputs)
        if kind in GLOBAL:
            return self.add(name, GLOBAL[kind], inputs)
        if kind in POOLINGS:
            sides = {
                "window": _sides(config["pool_size"]),
                "stride": _sides(config.get("strides") or config["pool_size"]),
            }
            return self.add(name, POOLINGS[kind], inputs, padding=str(config["padding"]), **sides)
        if kind in RESHAPING:
            return self.add(name, "flatten", inputs)
        if kind == "ZeroPadding2D":
            (top, bottom), (left, right) = config["padding"]
            return self.add(name, "pad", inputs, padding=((int(top), int(bottom)), (int(left), int(right))))
        if kind == "Concatenate":
            return self.add(name, "concat", inputs)
        if kind in ("UpSampling2D", "Resizing"):
            window = (int(config.get("height", 0)), int(config.get("width", 0)))
            return self.add(name, "resize", inputs, window=window)
        operation = str(config.get("function", "")).rpartition(".")[2] if kind == "TFOpLambda" else _snake_case(kind)
        if operation in ARITHMETIC and len(inputs) + len(constants) == 2:
            facts = {"constant": (constants[0][0],), "constant_first": constants[0][1]} if constants else {}
            return self.add(name, ARITHMETIC[operation], inputs, **facts)
        if kind == "TFOpLambda":
            return self.add(name, operation, inputs)
        return self.add(name, kind, inputs)

    def _with_weights(self, layer: Config, name: str, inputs: Sequence[str]) -> str:
        kind, config = layer["class_name"], layer["config"]
        depthwise = kind == "DepthwiseConv2D"
        kernel = "depthwise_kernel" if depthwise and f"{name}/kernel" not in self.variables else "kernel"
        facts: dict[str, Any] = {"weights": {"weight": f"{name}/{kernel}"}}
        if config.get("use_bias", True):
            facts["weights"]["bias"] = f"{name}/bias"
        if kind != "Dense":
            facts |= {"stride": _sides(config["strides"]), "dilation": _sides(config["dilation_rate"])}
            facts["padding"] = str(config["padding"])
        grouped = kind == "Conv2D" and config.get("groups", 1) != 1
        word = {"Dense": "dense", "DepthwiseConv2D": "depthwise", "Conv2D": "convolution"}[kind]
        activation, slope = _activation_of(layer)
        own = name if activation == "linear" else f"{name}:linear"
        made = self.add(own, f"grouped {word}" if grouped else word, inputs, **facts)
        return made if activation == "linear" else self.add(name, activation, (made,), slope=slope)

    def _stored(self, name: str) -> tuple[float, ...]:
        """A variable's values, at most one for each channel of an image; empty where there are none."""
        variable = self.variables.get(name)
        known = variable is not None and variable.nbytes <= 8 * MOST_CHANNELS
        return tuple(variable.read().ravel().tolist()) if variable is not None and known else ()

    def _normalization(self, config: Config, name: str, inputs: Sequence[str]) -> str:
        """(x - mean) / max(sqrt(variance), 1e-7), or the inverse of it."""
        mean, variance = (
            _numbers(config[part]) if config.get(part) is not None else self._stored(f"{name}/{part}")
            for part in ("mean", "variance")
        )
        if not mean or not variance or config.get("invert"):
            return self.add(name, "Normalization", inputs)
        shifted = self.add(f"{name}:mean", "subtract", inputs, constant=mean)
        return self.add(name, "divide", (shifted,), constant=tuple(max(one**0.5, 1e-7) for one in variance))


def _norm_weights(config: Config) -> dict[str, str]:
    """The variables of a batch norm by role, in their order."""
    found = {"gamma": "gamma"} if config.get("scale", True) else {}
    found |= {"beta": "beta"} if config.get("center", True) else {}
    return found | {"mean": "moving_mean", "variance": "moving_variance"}


def _activation_of(layer: Config) -> tuple[str, float]:
    """Our word for the activation of a layer, Keras's own where there is none; and its slope."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("ReLU", "LeakyReLU"):
        leak = config.get("negative_slope", config.get("alpha")) or 0.0
        most = config.get("max_value")
        limits = {None: "relu", 6: "relu6"}
        if config.get("threshold") or most not in limits or (leak and most):
            return f"ReLU of {most}", 0.0
        return ("leaky_relu", float(_numbers(leak)[0])) if leak else (limits[most], 0.0)
    if kind in ("ELU", "Softmax"):
        return ("softmax" if kind == "Softmax" else "elu" if config.get("alpha", 1) == 1 else "ELU"), 0.0
    given = config.get("activation") or "linear"
    if not isinstance(given, str):  # a function of the user's own, a layer, or one with arguments
        if given.get("class_name") in ACTIVATION_LAYERS:
            return _activation_of(given)
        inner = given.get("config")
        given = inner if isinstance(inner, str) else str(given.get("class_name"))
    if given in ACTIVATIONS_3:
        keras_3 = "module" in layer or given != "hard_sigmoid"
        return (ACTIVATIONS_3[given], SIXTH) if keras_3 else ("hard sigmoid of Keras 2", 0.0)
    return "silu" if given == "swish" else given, LEAK if given == "leaky_relu" else 0.0


def _numbers(given: Any) -> tuple[float, ...]:
    """A number, or (nested) lists of them, as numbers."""
    if isinstance(given, dict):  # a serialised array
        given = given["config"]["value"]
    if isinstance(given, (list, tuple)):
        return tuple(number for one in given for number in _numbers(one))
    return (float(given),)


def _sides(given: Any) -> tuple[int, int]:
    if isinstance(given, int):
        return given, given
    height, width = given
    return int(height), int(width)


def _ends(given: Any) -> list[tuple[str, int, int]]:
    """``["conv", 0, 0]``, or a list or mapping of such, as a list."""
    if isinstance(given, dict):
        given = list(given.values())
    if given and isinstance(given[0], str):
        given = [given]
    return [(str(name), int(node), int(position)) for name, node, position in given]


def _arguments(node: Any) -> tuple[list[tuple[str, int, int]], list[tuple[float, bool]]]:
    """The values that a use of a layer takes, and its constants, each with whether it comes first."""
    inputs: list[tuple[str, int, int]] = []
    constants: list[tuple[float, bool]] = []
    if isinstance(node, dict):  # Keras 3
        for found in _flat([node["args"], *(node.get("kwargs") or {}).values()], 0):
            if isinstance(found, dict):
                name, number, position = found["config"]["keras_history"]
                inputs.append((str(name), int(number), int(position)))
            else:
                constants.append((float(found), not inputs))
    elif node is not None:  # Keras 2
        for name, number, position, *more in [node] if node and isinstance(node[0], str) else node:
            if name == "_CONSTANT_VALUE":  # a number before a tensor, as in 1 - x
                constants.append((float(position), True))
            else:
                inputs.append((str(name), int(number), int(position)))
            for argument in more[:1]:
                for key, found in argument.items():
                    if key in ("x", "y") and isinstance(found, (int, float)) and not isinstance(found, bool):
                        constants.append((float(found), False))
                    elif (
                        key in ("x", "y") and isinstance(found, list) and len(found) == 3 and isinstance(found[0], str)
                    ):
                        inputs.append((found[0], int(found[1]), int(found[2])))
    return inputs, constants


def _flat(given: Any, depth: int) -> Iterator[Any]:
    """The tensors and numbers in arguments."""
    if isinstance(given, dict) and given.get("class_name") == "__keras_tensor__":
        yield given
    elif isinstance(given, (list, tuple)) and depth < MOST_DEPTH:
        for one in given:
            yield from _flat(one, depth + 1)
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        yield given
