"""Write the files of ../shared/cases, and more of their kind, with trained weights: for scripts/strangers_table.py.

.venv/bin/python scripts/strangers_files.py FOLDER [--shared ../shared]

The generators leave their weights at random; such networks give nearly the same output for every photo, which judges
nothing. Here the trained small_100 of ../shared/real is put into each of Keras's models as it is made. Beside the
folder of each Keras case, NAME.json is the configuration of its model, for files that hold weights only.
"""

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

ROOT = Path(__file__).parent.parent
CLASSES = 5  # of the cases; the trained classifier's first outputs


def main() -> None:
    """Write every case, each in a process of its own: some change Keras's policies."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--one", help="write this case only")
    options = parser.parse_args()
    if options.one:
        write(options.one, options.folder, options.shared)
        return
    for name in [*sorted(path.stem for path in (options.shared / "cases").glob("*.py")), *OWN]:
        print(name, flush=True)
        command = [sys.executable, __file__, options.folder, "--shared", options.shared, "--one", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def write(name: str, folder: Path, shared: Path) -> None:
    """Write one case with trained weights, and its model's configuration."""
    import keras
    import tensorflow as tf

    case, trained = folder / name, shared / "real/v3-small_224_1.0_float/ema/model-388500"
    case.mkdir(parents=True, exist_ok=True)
    made = []
    for owner, method in (
        (keras.Model, "save"),
        (keras.Model, "save_weights"),
        (keras.Model, "export"),
        (tf.train.Checkpoint, "__init__"),
    ):
        noted(owner, method, made)
    for model in ("MobileNetV3Small", "MobileNetV3Large"):
        setattr(
            keras.applications, model, filled(getattr(keras.applications, model), tf.train.load_checkpoint(trained))
        )
    if name in OWN:
        OWN[name](keras, tf, case)
    else:
        sys.argv = [name, str(case), str(trained)]
        runpy.run_path(str(shared / "cases" / f"{name}.py"), run_name="__main__")
    if made:
        (folder / f"{name}.json").write_text(made[0].to_json())


def noted(owner, method: str, made: list) -> None:
    """Keep the model that ``method`` of ``owner`` gets."""
    original = getattr(owner, method)

    def noting(self, *arguments, **options):
        made.append(options.get("model", self))
        return original(self, *arguments, **options)

    setattr(owner, method, noting)


def filled(function, reader):
    """``function`` of keras.applications, whose models get slim's trained variables where names and shapes fit.

    Where a shape differs (the minimalistic network's 3 x 3 kernels), the weights stay Keras's own.
    """
    variables = reader.get_variable_to_shape_map()

    def build(*arguments, **options):
        model = function(*arguments, **options)
        for layer in model.layers:
            values = [value_of(reader, variables, slim_name(weight.path)) for weight in layer.weights]
            shapes = [tuple(weight.shape) for weight in layer.weights]
            if layer.name == "logits":
                values = [value[..., 1 : 1 + CLASSES] for value in values]  # the first is the background
            if all(value is not None for value in values):
                values = [
                    np.reshape(value, shape) for value, shape in zip(values, shapes) if value.size == np.prod(shape)
                ]
                if len(values) == len(shapes):
                    layer.set_weights(values)
        return model

    return build


def value_of(reader, variables, name):
    """A variable of the checkpoint, None where there is none."""
    return reader.get_tensor(name) if name in variables else None


def slim_name(path: str) -> str:
    """slim's name of a weight of Keras's model: "expanded_conv_1_squeeze_excite_conv_1/kernel"."""
    layer, weight = path.rsplit("/", 2)[-2:]
    parts = re.fullmatch(r"(expanded_conv(?:_\d+)?)_(expand|depthwise|squeeze_excite|project)_?(.*)", layer)
    scope, rest = (f"{parts[1]}/{parts[2]}", parts[3]) if parts else ("", layer)
    norm = rest.endswith("bn")
    rest = rest.removesuffix("bn").strip("_")
    scope = "/".join(part for part in ("MobilenetV3", scope, rest.capitalize()) if part)
    scope = scope.replace("/Logits", "/Logits/Conv2d_1c_1x1")
    if norm:
        return f"{scope}/BatchNorm/{weight}"
    kind = {"kernel": "depthwise_weights" if scope.endswith("depthwise") else "weights", "bias": "biases"}[weight]
    return f"{scope}/{kind}"


def tuned(keras, head=None, before=(), **options):
    """A base with a head of its user's own, behind the layers ``before``."""
    base = keras.applications.MobileNetV3Small(weights=None, input_shape=(224, 224, 3), include_top=False, **options)
    layers = keras.layers
    head = head or [
        *(layers.GlobalAveragePooling2D(), layers.Dense(32), layers.BatchNormalization(), layers.ReLU()),
        *(layers.Dropout(0.3), layers.Dense(CLASSES, activation="softmax")),
    ]
    return keras.Sequential([keras.Input((224, 224, 3)), *before, base, *head])


def scaled(keras, layer):
    """A classifier whose user scales pixels with ``layer``."""
    given = keras.Input((224, 224, 3))
    options = {"weights": None, "classes": CLASSES, "include_preprocessing": False, "input_tensor": layer(given)}
    return keras.applications.MobileNetV3Small(**options)


def normalization(keras, _tf, case):
    layer = keras.layers.Normalization(mean=[123.675, 116.28, 103.53], variance=[3409.9, 3262.3, 3290.3])
    scaled(keras, layer).save(case / "normalization.keras")


def max_sigmoid(keras, _tf, case):
    options = {"weights": None, "classes": CLASSES, "classifier_activation": "sigmoid", "pooling": "max"}
    keras.applications.MobileNetV3Small(input_shape=(224, 224, 3), **options).save(case / "max_sigmoid.keras")


def averages(keras, _tf, case):
    """Averages as trained, beside raw weights that an optimizer has moved on."""
    model = tuned(keras)
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(1)  # before the first step, averages are zeros
    random = np.random.default_rng(0)
    for average, variable in zip(model.optimizer._model_variables_moving_average, model.trainable_variables):
        average.assign(variable)
        variable.assign(np.asarray(variable) * random.normal(1, 0.2, variable.shape))
    model.save(case / "averages.keras")


def checkpoint_with_configuration(keras, tf, case):
    model = tuned(keras)
    tf.train.Checkpoint(model=model).save(str(case / "ckpt/c"))
    (case / "ckpt/c.json").write_text(model.to_json())


def own_head(keras, _tf, case):
    tuned(keras).save(case / "own_head.keras")


def other_functions(keras, _tf, case):
    layers = keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dense(32, "gelu"), layers.Dense(32, "selu"), layers.Dense(32)]
    tuned(keras, [*head, layers.LeakyReLU(0.1), layers.Dense(CLASSES, "softmax")]).save(case / "other_functions.keras")


def convolutions_saved_model(keras, _tf, case):
    """A head of 1x1 convolutions, and an adapted Normalization before the base."""
    layers, scaling = keras.layers, keras.layers.Normalization()
    scaling.adapt(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.float32))
    head = [layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(32, 1, activation="relu"), layers.Dropout(0.3)]
    head += [layers.Conv2D(CLASSES, 1), layers.Flatten(), layers.Softmax()]
    model = tuned(keras, head, [scaling], include_preprocessing=False)
    model.export(str(case / "convolutions"), verbose=False)


def own_head_h5(keras, _tf, case):
    tuned(keras).save(case / "own_head.h5")


def own_head_saved_model(keras, _tf, case):
    tuned(keras).export(str(case / "own_head"), verbose=False)


def own_head_float_lite(keras, tf, case):
    lite(keras, tf, case, [])


def own_head_float16_lite(keras, tf, case):
    lite(keras, tf, case, [tf.float16])


def own_head_int8_lite(keras, tf, case):
    lite(keras, tf, case, None)


def lite(keras, tf, case, types) -> None:
    """A .tflite file: float, float16, or (None) full 8 bits, calibrated with smooth noise."""
    model = tuned(keras)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if types != []:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = types or []
    if types is None:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (20, 7, 7, 3)).repeat(32, 1).repeat(32, 2).astype(np.float32)
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    (case / "own_head.tflite").write_bytes(converter.convert())


OWN = {
    function.__name__: function
    for function in (
        normalization,
        max_sigmoid,
        averages,
        checkpoint_with_configuration,
        own_head,
        other_functions,
        convolutions_saved_model,
        own_head_h5,
        own_head_saved_model,
        own_head_float_lite,
        own_head_float16_lite,
        own_head_int8_lite,
    )
}

if __name__ == "__main__":
    main()
