"""Inference: our forms against timm's, onnx2torch, ONNX Runtime, TensorFlow and LiteRT.

.venv/bin/python benchmarks/inference.py [--variants small_075 ...] [--threads 1 2] [--batches 1 32] [--no-compile]

float32, 224 px, the checkpoints of ../shared/checkpoints. Each setting is a process of its own, in which all forms
take turns; compiling takes it a minute or two. Prints milliseconds a batch, ratios, and how far each form's logits are
from TensorFlow's record.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, SHARED, interleaved, table, write_result

FOLDERS = {"small_075": "v3-small_224_0.75_float", "large_100": "v3-large_224_1.0_float"}
Run = Callable[[], np.ndarray]


def torch_forms(artifact: Path, variant: str, images: np.ndarray, compiled: bool, folder: Path) -> dict[str, Run]:
    """timm's model and ours, eager, deployed and compiled."""
    import torch

    import porter
    from porter.evaluation.timm_import import import_timm
    from porter.release.exports import aot_package

    def timm_model() -> Any:
        model = import_timm().create_model(f"tf_mobilenetv3_{variant}").eval()
        model.load_state_dict(torch.load(artifact, weights_only=True))
        return model

    ours = porter.create_model(variant, artifact)
    deployed = porter.deploy(ours)
    x = torch.from_numpy(images)
    last = x.contiguous(memory_format=torch.channels_last)
    models: dict[str, tuple[Any, Any]] = {
        "timm eager": (timm_model(), x),
        "timm channels_last": (timm_model().to(memory_format=torch.channels_last), last),
        "ours eager": (ours, x),
        "ours deployed": (deployed, x),
    }
    if compiled:
        models["timm torch.compile"] = torch.compile(timm_model()), x
        compiled_ours = porter.deploy(ours)
        compiled_ours.compile(options={"cpp_wrapper": True})
        models["ours torch.compile"] = compiled_ours, x
        _, package = aot_package(ours, folder / variant, images[:1])
        models["ours AOTInductor"] = (lambda batch: torch.from_numpy(package(batch.numpy()))), x

    def runner(model: Any, inputs: Any) -> Run:
        def run() -> np.ndarray:
            with torch.no_grad():
                return model(inputs).numpy()

        return run

    return {name: runner(model, inputs) for name, (model, inputs) in models.items()}


def onnx_forms(artifact: Path, variant: str, images: np.ndarray, threads: int, folder: Path) -> dict[str, Run]:
    """ONNX Runtime on the model that ``release --onnx`` writes."""
    import porter
    from porter.release.exports import onnx_model

    path, _ = onnx_model(porter.create_model(variant, artifact), folder / variant, images[:1])
    return {"ONNX Runtime": _onnx_run(path.read_bytes(), "image", images, threads)}


def _onnx_run(model: bytes, name: str, images: np.ndarray, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {name: images})[0]


def frozen_graph_forms(source: Path, images: np.ndarray, threads: int) -> dict[str, Run]:
    """The frozen graph in ``source`` as TensorFlow runs it, and by tf2onnx in ONNX Runtime and onnx2torch."""
    [path] = source.glob("*.pb")
    import tensorflow as tf
    import tf2onnx
    import torch

    from porter.evaluation.timm_import import import_timm

    import_timm()  # torchvision's missing operators, which onnx2torch needs as well
    from onnx2torch import convert

    definition = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    given, wanted = "input:0", "MobilenetV3/Logits/output:0"
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    session = tf.compat.v1.Session(graph=graph, config=config)
    run = session.make_callable(wanted, [given])
    nhwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    with contextlib.redirect_stdout(sys.stderr):
        model, _ = tf2onnx.convert.from_graph_def(
            definition, input_names=[given], output_names=[wanted], inputs_as_nchw=[given], opset=17
        )  # onnx2torch knows no later opset
    onnx_run = _onnx_run(model.SerializeToString(), given, images, threads)
    module, x = convert(model).eval(), torch.from_numpy(images)

    def torch_run() -> np.ndarray:
        with torch.no_grad():
            return module(x).numpy()

    runs = {"TensorFlow": lambda: run(nhwc), "ONNX Runtime, tf2onnx": onnx_run, "onnx2torch": torch_run}
    return {name: _without_background(call) for name, call in runs.items()}


def _without_background(run: Run) -> Run:
    return lambda: run()[:, 1:]


def lite_forms(source: Path, images: np.ndarray, threads: int) -> dict[str, Run]:
    """LiteRT on the .tflite in ``source``, where there is one."""
    path = next(source.glob("*.tflite"), None)
    if path is None:
        return {}
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    given = interpreter.get_input_details()[0]["index"]
    nhwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    interpreter.resize_tensor_input(given, nhwc.shape)
    interpreter.allocate_tensors()
    output = interpreter.get_output_details()[0]["index"]

    def run() -> np.ndarray:
        interpreter.set_tensor(given, nhwc)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return {"LiteRT": _without_background(run)}


def measure(variant: str, source: Path, batch: int, threads: int, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Every form of one variant at one batch size, in this process."""
    import torch

    from porter.conversion import convert

    torch.set_num_threads(threads)
    with np.load(source / "expected.npz") as file:
        recorded, logits = file["input"], file["logits"][:, 1:]
    images = np.ascontiguousarray(np.resize(recorded, (batch, *recorded.shape[1:])).transpose(0, 3, 1, 2))
    expected = np.resize(logits, (batch, logits.shape[1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact, _ = convert(source, folder / "a.pth", variant)
        forms = torch_forms(artifact, variant, images, compiled, folder)
        forms |= onnx_forms(artifact, variant, images, threads, folder)
        forms |= frozen_graph_forms(source, images, threads)
        forms |= lite_forms(source, images, threads)
        rows = []
        errors = {}
        for name, run in forms.items():
            found = run()
            if found.min() < 0:  # logits; the .tflite ends in its softmax
                errors[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
        times = interleaved(forms, rounds, calls=5 if batch == 1 else 1)
    for name, one in times.items():
        row = {"variant": variant, "threads": threads, "batch": batch, "form": name, **one.as_json()}
        rows.append(row | {"logits_error": errors.get(name), "ratio": one.median / times["timm eager"].median})
    return rows


def main() -> None:
    """Print a table a setting, and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=0, help="15 at batch 1, 8 at others when left out")
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes a minute to compile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        warnings.simplefilter("ignore")
        [variant], [threads], [batch] = given.variants, given.threads, given.batches
        rounds = given.rounds or (15 if batch == 1 else 8)
        rows = measure(variant, SHARED / FOLDERS[variant], batch, threads, rounds, not given.no_compile)
        print(json.dumps(rows))
        return
    everything = []
    for variant in given.variants:
        for threads in given.threads:
            for batch in given.batches:
                setting = ["--variants", variant, "--threads", str(threads), "--batches", str(batch)]
                command = [sys.executable, __file__, "--child", *setting, "--rounds", str(given.rounds)]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
                ran = subprocess.run(
                    command + ["--no-compile"] * given.no_compile, stdout=subprocess.PIPE, text=True, env=environment
                )
                if ran.returncode:
                    raise SystemExit(f"failed: {' '.join(command)}")
                rows = json.loads(ran.stdout.splitlines()[-1])
                everything += rows
                print(f"\n{variant}, {threads} thread(s), batch {batch}\n\n{shown(rows)}", flush=True)
                write_result("inference", everything, given.results)


def shown(rows: list[dict[str, Any]]) -> str:
    """One setting as a table, in the order of speed, ratios to what it is held against."""
    medians = {row["form"]: row["median"] for row in rows}
    against = ("timm eager", "timm torch.compile", "ONNX Runtime")
    header = ["form", "ms", "quartiles", *(f"x {name}" for name in against), "logits off by"]
    lines = []
    for row in sorted(rows, key=lambda row: row["median"]):
        ratios = [f"{row['median'] / medians[name]:.2f}" if name in medians else "" for name in against]
        quartiles = f"{row['low'] * 1e3:.2f} - {row['high'] * 1e3:.2f}"
        error = "" if row["logits_error"] is None else f"{row['logits_error']:.1e}"
        lines.append([row["form"], f"{row['median'] * 1e3:.2f}", quartiles, *ratios, error])
    return table(header, lines)


if __name__ == "__main__":
    main()
