"""Judge ports of strangers' files by the originals in their own runtimes: docs/strangers.md.

.venv/bin/python scripts/strangers_table.py [--shared ../shared] [--files FOLDER ...] [--photos 125] > docs/strangers.md

FOLDER holds what the generators in ../shared/cases write, one folder each. `verify` is not used.
"""

import argparse
import os
import re
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

ROOT = Path(__file__).parent.parent
INTRODUCTION = """# Files of strangers, judged

This page is written by `scripts/strangers_table.py`. Each file was made by somebody else, or after a public report
(`cases` are made by small generators; their weights are untrained, so that their outputs hardly differ between photos).
The original runs in its own runtime (Keras, LiteRT, TensorFlow) on {photos} photos of ImageNet, as 8-bit pixels. The
port gets the same pixels by its own documented preprocessing. `verify` has no part in it.

- **top-1**: the number of photos with the same likeliest output.
- **distance**: the largest difference of the outputs, over the largest output.
- **refused**: what `convert` says instead. Where `--backbone` ports a part, the original has no such output to compare.

Outputs of 8-bit files are levels 1/256 apart, and the port's are not rounded behind the logits.
The model of bfloat16 rounds its outputs to 8 bits of precision: on untrained weights, most classes tie.

| file | port | top-1 | distance |
|---|---|---|---|
"""
ROUNDING = 1e-4  # float32 outputs of one network in two programs; 8 bits are compared in levels


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
        print(row(Path(options.one[0]), options.one[1].split(), photos))
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


def row(path: Path, arguments: list[str], photos: list[Path]) -> str:
    """The cells of one file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            out, port = convert(
                path, Path(folder) / "port.safetensors", backbone="backbone" in arguments, keep_background=True
            )
            model = open_model(str(out))
        except PorterError as error:
            said = re.sub(r"\S*/", "", error.for_command().splitlines()[0])
            return f"refused: {said} | | "
        what = f"{port.mapping.variant}, {port.plan.num_classes or 'no'} classes"
        try:
            original = runtime(path, port)
        except (ValueError, TypeError) as error:  # Keras 3 cannot load every .h5 that it writes
            return f"{what} | its runtime cannot load it: {' '.join(str(error).split())[:60]} | "
        if original is None:
            return f"{what} | no runtime of its own | "
        agree, furthest, scale = 0, 0.0, 0.0
        for photo in photos:
            spec = model.input
            pixels = resized(read_image(photo), (spec.size, spec.size), spec.crop, "card")
            images = torch.from_numpy(normalized(pixels, spec.mean, spec.std, spec.levels)).permute(2, 0, 1)[None]
            with torch.no_grad():
                ours = model.model(images.contiguous())
            theirs = original(pixels)
            candidates = [ours, probabilities(model.whole.network, ours)]
            mine = min((one.numpy().ravel() for one in candidates), key=lambda one: np.abs(one - theirs.ravel()).max())
            agree += int(mine.argmax() == theirs.argmax())
            furthest, scale = (
                max(furthest, float(np.abs(mine - theirs.ravel()).max())),
                max(scale, float(np.abs(theirs).max())),
            )
        return f"{what} | {agree} of {len(photos)} | {furthest / scale:.1e}"


def runtime(path: Path, port: Port):
    """The original as a function of (H, W, 3) pixels; None where it cannot run by itself."""
    if port.network.backbone and port.network.head is None:
        return None  # its outputs are not those of the file
    white = port.white or None
    if port.checkpoint.format == "keras" and port.checkpoint.graph is not None:
        return keras_model(path, port, white)
    if port.checkpoint.format == "tflite":
        return interpreter(path)
    if (path / "saved_model.pb").is_file():
        import tensorflow as tf

        served = tf.saved_model.load(str(path)).signatures
        if "serving_default" in served:
            call = served["serving_default"]
            return lambda pixels: next(iter(call(tf.constant(for_white(pixels, white)[None])).values())).numpy()
    return None


def for_white(pixels: np.ndarray, white: float | None) -> np.ndarray:
    """Pixels as the file takes them; in [-1, 1] where it states no scaling."""
    values = pixels.astype(np.float32)
    return values / 127.5 - 1 if white is None else values * np.float32(white / 255)


def keras_model(path: Path, port: Port, white: float | None):
    """Keras's own model."""
    import keras

    if path.is_dir() or path.suffix == ".json":
        config = (path if path.is_dir() else path.parent) / "config.json"
        if not config.is_file():
            return None
        model = keras.models.model_from_json(config.read_text())
        model.load_weights(str(port.checkpoint.path))
    else:
        model = keras.models.load_model(str(path), compile=False)
    return lambda pixels: np.asarray(model(for_white(pixels, white)[None], training=False), np.float32)


def interpreter(path: Path):
    """LiteRT, with its reference kernels."""
    from ai_edge_litert import interpreter as litert

    kernels = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = litert.Interpreter(str(path), experimental_op_resolver_type=kernels)
    runner.allocate_tensors()
    given, taken = runner.get_input_details()[0], runner.get_output_details()[0]

    def run(pixels: np.ndarray) -> np.ndarray:
        if given["dtype"] == np.float32:  # 0 to 1 in the one float file here that states it
            values = pixels.astype(np.float32) / 255
        else:
            values = (pixels.astype(np.int32) + np.iinfo(given["dtype"]).min).astype(given["dtype"])
        runner.set_tensor(given["index"], values[None])
        runner.invoke()
        found, (scale, zero) = runner.get_tensor(taken["index"]), taken["quantization"]
        return (found.astype(np.float32) - zero) * np.float32(scale) if scale else found

    return run


if __name__ == "__main__":
    main()
