"""Judge ports of strangers' files by the originals in their own runtimes: docs/strangers.md.

.venv/bin/python scripts/strangers_table.py [--shared ../shared] [--files FOLDER ...] [--photos 125] > docs/strangers.md

FOLDER holds what the generators in ../shared/cases write, one folder each. `verify` is not used.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import torch

from porter.errors import PorterError
from porter.exports.convert import convert
from porter.models.build import probabilities
from porter.models.create import open_model
from porter.photos.images import find_photos, normalized, read_image, resized
from porter.port import Port
from porter.sources.tflite_graph import read_graph
from porter.sources.tflite_metadata import normalization

ROOT = Path(__file__).parent.parent
INTRODUCTION = """# Files of strangers, judged

This page is written by `scripts/strangers_table.py`. Each file was made by somebody else, or after a public report
(`cases`, written by `scripts/strangers_files.py` with trained weights). The original runs in its own runtime (Keras,
LiteRT, TensorFlow) on {photos} photos of ImageNet, as 8-bit pixels. The port gets the same pixels by its own documented
preprocessing. `verify` has no part in it. Of a backbone, the map that its port returns is compared with the original's.

- **top-1**: the number of photos with the same likeliest output; of a map, the share of its positions.
- **distance**: the largest difference of the outputs, over the largest output.
- **refused**: what `convert` says instead.

The models of bfloat16 compute with 8 bits of precision, their ports in float32 with the same weights. Their kernels of
3 x 3 are untrained.

| file | port | top-1 | distance |
|---|---|---|---|
"""
SLIM = "real/v3-small_224_1.0_float/v3-small_224_1.0_float.pb"  # the network whose variables the cases of slim hold
DEEPLAB = (513, 1025)  # height and width to which both graphs here pad what is smaller


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--photos", type=int, default=125)
    parser.add_argument("--one", nargs=2, help="a file and its options: print its row only")
    options = parser.parse_args()
    photos = find_photos(options.shared / "real" / "images")[: options.photos]
    if options.one:
        print(row(Path(options.one[0]), options.one[1].split(), photos, options.shared))
        return
    print(INTRODUCTION.format(photos=len(photos)), end="")
    for path, name in sources(options.shared, options.files):
        for arguments in ("", "--backbone"):
            command = [sys.executable, __file__, "--shared", options.shared, "--photos", str(options.photos)]
            ran = subprocess.run([*command, "--one", path, arguments.strip("-")], capture_output=True, text=True)
            told = ran.stdout.strip() or f"failed: {ran.stderr.strip().splitlines()[-1:]}"
            print(f"| {name}{' ' + arguments if arguments else ''} | {told} |", flush=True)
            if not told.startswith("refused"):
                break  # the whole network was ported


def sources(shared: Path, folders: list[Path]) -> list[tuple[Path, str]]:
    """The files to judge, and their names in the table."""
    real = shared / "real"
    found = [*sorted(real.glob("*.tflite")), *sorted(real.glob("*.pb")), *sorted((real / "lraspp_user").iterdir())]
    found += [real / "centernet", real / "edgetpu_authors", real / "v3-small_224_1.0_float"]
    named = [(path, str(path.relative_to(shared))) for path in found]
    for folder in folders:
        for case in sorted(path for path in folder.iterdir() if path.is_dir()):
            items = sorted(case.iterdir())
            prefixes = [item.with_suffix("") for item in items if item.suffix == ".index"]
            indices = [item for item in items if item.name.endswith(".weights.json")]
            for item in prefixes or indices or items:
                named.append((item, f"cases: {case.name}/{item.name}"))
    return named


def row(path: Path, arguments: list[str], photos: list[Path], shared: Path) -> str:
    """The cells of one file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            out, port = convert(
                path, Path(folder) / "port.safetensors", backbone="backbone" in arguments, keep_background=True
            )
            model = open_model(str(out))
        except PorterError as error:
            said = error.for_command().splitlines()[0].replace(f"{path.parent}/", "")
            return f"refused: {said} | | "
        what = f"{port.mapping.variant}, {port.plan.num_classes or 'no'} classes"
        spec, white = model.input, port.white or None
        run, sides = runtime(path, port, shared)
        if sides == DEEPLAB and port.plan.ranges:
            photos = photos[::10]  # in PyTorch, 8 bits take some 20 s for an image of this size
        features = port.network.backbone and port.network.head is None
        agree, furthest, scale, place = 0.0, 0.0, 0.0, None
        for photo in photos:
            pixels = resized(read_image(photo), sides or (spec.size, spec.size), spec.crop, "card")
            images = torch.from_numpy(normalized(pixels, spec.mean, spec.std, spec.levels)).permute(2, 0, 1)[None]
            with torch.no_grad():
                network = model.whole.network
                given = (model.model.forward_features if features else model.model)(images.contiguous())
                returned = [given, probabilities(network, given)] if given.ndim == 2 else [given]
            ours = [np.moveaxis(one.numpy()[0], 0, -1) for one in returned]  # (C) or (H, W, C)
            theirs = run(pixels, for_white(pixels, white)[None], place and place[0])
            if place is None:  # the output of the original is named by its runtime, a map within it is found by value
                near = {
                    (name, index): float(np.abs(np.reshape(value, one.shape) - one).max())
                    for name, value in theirs.items()
                    for index, one in enumerate(ours)
                    if np.size(value) == one.size
                }
                place = min(near, key=near.__getitem__)
            mine, value = ours[place[1]], np.reshape(theirs[place[0]], ours[place[1]].shape)
            agree += float((mine.argmax(-1) == value.argmax(-1)).mean())
            furthest = max(furthest, float(np.abs(mine - value).max()))
            scale = max(scale, float(np.abs(value).max()))
        same = f"{agree:.0f} of {len(photos)}"
        if mine.ndim > 1:
            same = f"{100 * agree / len(photos):.2f} %" + (f" of {len(photos)} photos" if sides == DEEPLAB else "")
        return f"{what} | {same} | {furthest / scale:.1e}"


def runtime(path: Path, port: Port, shared: Path):
    """The original in its own runtime: from an 8-bit image, the values that the file takes of it and the name of one of
    its tensors (None: all) to tensors by name. Beside it, the height and width that it takes, None for any."""
    if port.checkpoint.format == "tflite":
        return interpreter(path)
    if path.suffix == ".pb":
        return frozen_graph(path, {})
    if (path / "saved_model.pb").is_file():
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        if "serving_default" in loaded.signatures:
            call = loaded.signatures["serving_default"]
            return lambda _pixels, values, _only: {k: v.numpy() for k, v in call(tf.constant(values)).items()}, None
        return frozen_graph(shared / SLIM, {one.name.split(":")[0]: one.numpy() for one in loaded.all})
    configuration = path.parent.with_suffix(".json") if path.parent.parent.name != "real" else path
    if configuration.is_file():
        return keras_model(path, configuration)
    import tensorflow as tf

    bundle = path if path.with_name(path.name + ".index").is_file() else tf.train.latest_checkpoint(str(path))
    bundle = bundle or next(path.glob("*/*.index")).with_suffix("")
    reader = tf.train.load_checkpoint(str(bundle))
    names = [name for name in reader.get_variable_to_shape_map() if "MobilenetV3" in name]
    return frozen_graph(shared / SLIM, {name[name.index("MobilenetV3") :]: reader.get_tensor(name) for name in names})


def for_white(pixels: np.ndarray, white: float | None) -> np.ndarray:
    """Pixels as the file takes them; in [-1, 1] where it states no scaling."""
    values = pixels.astype(np.float32)
    return values / 127.5 - 1 if white is None else values * np.float32(white / 255)


def frozen_graph(path: Path, variables: dict[str, np.ndarray]):
    """TensorFlow 1's session over a frozen graph, with ``variables`` in place of its constants of the same names."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    for node in graph.node:
        if node.op == "Const" and node.name in variables:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(variables[node.name]))
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        tf.import_graph_def(graph, name="")
    operations = session.graph.get_operations()
    (image,) = [operation.outputs[0] for operation in operations if operation.type == "Placeholder"]
    outputs = [operation.outputs[0] for operation in operations if operation.outputs and operation.type != "Const"]
    floats = [tensor for tensor in outputs if tensor.dtype == tf.float32]

    def run(pixels, values, only):
        fed = {image: values if image.dtype == tf.float32 else pixels[None]}
        return session.run({tensor.name: tensor for tensor in floats if only in (None, tensor.name)}, fed)

    return run, DEEPLAB if image.name == "ImageTensor:0" else None


def keras_model(path: Path, configuration: Path):
    """Keras's own model, and the outputs of its layers."""
    import keras
    import tensorflow as tf

    if path.suffix == ".keras":
        model = keras.models.load_model(str(path))
        if getattr(
            getattr(model, "optimizer", None), "use_ema", False
        ):  # its averages, as Keras itself puts them in place
            model.optimizer.finalize_variable_values(model.trainable_variables)
    else:
        model = keras.models.model_from_json(configuration.read_text())
        if path.is_dir() and not (path / "config.json").is_file():
            tf.train.Checkpoint(model=model).restore(tf.train.latest_checkpoint(str(path))).expect_partial()
        elif path.is_dir():
            model.load_weights(str(path / "model.weights.h5"))
        else:
            model.load_weights(str(path))
    base = next((layer for layer in model.layers if isinstance(layer, keras.Model)), model)
    layers = [layer for layer in base.layers if not isinstance(layer, keras.layers.InputLayer)]
    maps = keras.Model(base.inputs, [layer.output for layer in layers])

    def run(pixels, _values, only):
        values = pixels[None].astype(np.float32)  # as all models of Keras here take them, by layers of their own
        found = {"output": np.asarray(model(values, training=False), np.float32)}
        if only != "output":  # of a base that is ported alone, and has its scaling inside
            every = maps(values, training=False)
            found |= {layer.name: np.asarray(one, np.float32) for layer, one in zip(layers, every)}
        return found

    return run, None


def interpreter(path: Path):
    """LiteRT, with its reference kernels; all its tensors in float."""
    from ai_edge_litert import interpreter as litert

    kernels = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = litert.Interpreter(
        str(path), experimental_op_resolver_type=kernels, experimental_preserve_all_tensors=True
    )
    runner.allocate_tensors()
    given, stated = runner.get_input_details()[0], normalization(read_graph(path).metadata, path.name)
    maps = [one for one in runner.get_tensor_details() if one["shape"].size in (2, 4) and one["shape"][0] == 1]

    def run(pixels, values, only):
        if given["dtype"] == np.float32 and stated:  # TensorFlow Lite's metadata: what its users apply
            values = ((pixels - np.float32(stated.mean)) / np.float32(stated.std))[None]
        elif given["dtype"] != np.float32:
            values = (pixels.astype(np.int32) + np.iinfo(given["dtype"]).min).astype(given["dtype"])[None]
        runner.set_tensor(given["index"], values)
        runner.invoke()
        found = {}
        for one in maps:
            if only not in (None, (one["name"], one["index"])):
                continue
            scale, zero = one["quantization"]
            try:
                tensor = runner.get_tensor(one["index"])
            except ValueError:  # an operator's own buffer
                continue
            if tensor.dtype != np.int32:
                found[one["name"], one["index"]] = (tensor.astype(np.float32) - zero) * np.float32(scale or 1)
        return found

    return run, tuple(given["shape"][1:3])


if __name__ == "__main__":
    main()
