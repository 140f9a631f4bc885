"""Judge published MobileNetV3 definitions with one checkpoint's weights by ``verify``: docs/conformance.md.

.venv/bin/python scripts/conformance.py [--shared ../shared] [--variants small_100 ...] > docs/conformance.md

Every port has the same variables. The reference is slim's own graph, in float64 and float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
PORTS = Path(__file__).parent / "conformance_ports.py"

INTRODUCTION = """# Ports of MobileNetV3, judged

This page is written by `scripts/conformance.py`. For each variant, all ports have the weights of one checkpoint. The
reference is slim's graph, which TensorFlow runs in float64 and in float32 on ImageNet photos. The weights of small 1.0
are trained, the others are not.

- **float64**: the distance of the port's logits from the reference's, over their scale. "cannot" means that the port
  cannot compute in float64. Rounding is below 1e-12. A port that is further off computes another function.
- **float32**: the error of the port's logits in units of TensorFlow's own float32 rounding. If there are several
  batches of photos, it is their median.
- **top-1**: the number of photos with the same likeliest class.
- **cause**: the mistake that `verify` names, if it is a known one.
"""


def prepare(source: Path, variant: str, folder: Path) -> None:
    """Write the weights of ``source`` in the formats that the ports take."""
    import tensorflow as tf
    from slim_graph import frozen

    from porter.exports.convert import convert
    from porter.port import plan_port

    (folder / "port.json").write_text(json.dumps({"variant": variant}))
    convert(source, folder / "plain.pth", layout="slim")
    convert(source, folder / "ours.pth")
    port = plan_port(source)
    variables = {step.source: port.checkpoint[step.source].read() for step in port.plan.steps}
    graph = frozen(tf, variables, variant, image=(None, 224, 224, 3))
    (folder / "frozen.pb").write_bytes(graph.SerializeToString())
    logits = "MobilenetV3/Logits/Squeeze"
    subprocess.run(
        [sys.executable, "-m", "tf2onnx.convert", "--graphdef", folder / "frozen.pb", "--inputs", "input:0"]
        + ["--outputs", f"{logits}:0", "--opset", "17", "--output", folder / "logits.onnx"],
        check=True,
        capture_output=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    converter = tf.compat.v1.lite.TFLiteConverter(graph, None, None, [("input", [1, 224, 224, 3])], [logits])
    (folder / "litert.tflite").write_bytes(converter.convert())
    keras_file(tf, variant, variables, folder / "keras.weights.h5")


def keras_file(tf, variant: str, variables: dict[str, np.ndarray], path: Path) -> None:
    """keras.applications' model with ``variables`` in it."""
    from porter.mapping.files import load_variant
    from porter.mapping.rules import expected_variables
    from porter.network.network import build_network

    slim, keras = load_variant(variant), load_variant(variant, "keras")
    network = build_network(slim)
    classes = len(variables["MobilenetV3/Logits/Conv2d_1c_1x1/biases"])
    model = getattr(tf.keras.applications, keras.keras.model)(
        input_shape=(224, 224, 3),
        alpha=keras.keras.alpha,
        minimalistic=keras.keras.minimalistic,
        include_top=True,
        weights=None,
        classes=classes,
        include_preprocessing=False,
    )
    pairs = zip(expected_variables(slim, network, classes), expected_variables(keras, network, classes), strict=True)
    for own, theirs in pairs:
        layer, name = theirs.source.rsplit("/", 1)
        [weight] = [w for w in model.get_layer(layer).weights if w.name.split("/")[-1].split(":")[0] == name]
        weight.assign(variables[own.source].reshape(weight.shape))
    model.save_weights(path)


def ports(variant: str, folder: Path) -> dict[str, tuple[str, Path | None]]:
    """Name -> port and weights file."""
    timm = f"timm:tf_mobilenetv3_{variant}"
    found: dict[str, tuple[str, Path | None]] = {
        "mnv3-port": (str(folder / "ours.pth"), None),
        f"timm `{timm[5:]}`, weights by mnv3-port": (timm, folder / "ours.pth"),
        f"timm `{timm[5:]}`, weights renamed": (timm, folder / "plain.pth"),
    }
    if "minimal" not in variant:
        found[f"timm `mobilenetv3_{variant}`, weights renamed"] = (f"{PORTS}:timm_other", None)
    if variant.endswith("_100") and "minimal" not in variant:
        name = "mobilenet_v3_" + variant.removesuffix("_100")
        found[f"torchvision `{name}`, weights renamed"] = (f"{PORTS}:torchvision_class", None)
    found["keras.applications"] = (str(folder / "keras.weights.h5"), None)
    found["tf2onnx, ONNX Runtime"] = (str(folder / "logits.onnx"), None)
    found["tf2onnx, onnx2torch"] = (f"{PORTS}:OnnxToTorch", None)
    found["LiteRT's converter"] = (str(folder / "litert.tflite"), None)
    return found


def rows(source: Path, variant: str, photos: Path) -> None:
    """Print the table of one variant."""
    from porter import verify

    print(f"\n## `{variant}`\n")
    print("| port | float64 | float32 | top-1 | cause |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["CONFORMANCE"] = temporary
        prepare(source, variant, folder)
        for name, (port, weights_file) in ports(variant, folder).items():
            found = verify(folder / "frozen.pb", port, variant, images=photos, weights_file=weights_file)
            logits = [row for row in found.rows if row.endpoint == "Logits"]
            function = [row.function for row in logits if row.function is not None]
            ratios = [row.noise_ratio for row in logits if row.noise_ratio is not None]
            cause = found.causes[0].what if found.causes else "" if found.passed else "unknown"
            cells = [
                name,
                f"{max(function):.1e}" if function else "cannot",
                f"{np.median(ratios):.1f} x" if ratios else "-",
                f"{found.top1_agree} of {found.images}",
                cause,
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--variants", nargs="*")
    arguments = parser.parse_args()
    shared = arguments.shared
    from porter.port import plan_port

    sources = {plan_port(path).plan.variant: path for path in sorted((shared / "checkpoints").glob("v3-*"))}
    sources["small_100"] = shared / "real" / "v3-small_224_1.0_float" / "ema"
    print(INTRODUCTION, end="")
    for variant, source in sources.items():
        if variant in (arguments.variants or sources):
            rows(source, variant, shared / "real" / "images")


if __name__ == "__main__":
    main()
