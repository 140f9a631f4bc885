"""Inference: our forms and exports against timm's, tf2onnx, onnx2torch and TensorFlow.

.venv/bin/python benchmarks/inference.py [--variants small_075 ...] [--threads 1 2] [--batches 1 32] [--no-compile]

float32, 224 px, the checkpoints of ../shared/checkpoints. Each form is a process of its own, as it would be for a user,
and they take turns, one running at a time: in one process, the heap that one form leaves slows down the next. Prints
milliseconds a batch, ratios, and how far each form's logits are from TensorFlow's record.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import RESULTS, SHARED, table, timed, turn, write_result

from porter.process import cores

FOLDERS = {"small_075": "v3-small_224_0.75_float", "large_100": "v3-large_224_1.0_float"}
GIVEN, WANTED = "input:0", "MobilenetV3/Logits/output:0"  # of the frozen graph
PAUSE = 0.05  # seconds between turns: idle threads of the form before go to sleep
Run = Callable[[], np.ndarray]  # logits without background, (N, 1000)


class Setting(NamedTuple):
    """What a form is built for; ``images`` are (N, 3, 224, 224), ``folder`` is for its files."""

    variant: str
    source: Path
    artifact: Path
    images: np.ndarray
    threads: int
    folder: Path

    @property
    def nhwc(self) -> np.ndarray:
        """The images as TensorFlow takes them."""
        return np.ascontiguousarray(self.images.transpose(0, 2, 3, 1))


def _torch_run(model: Any, images: np.ndarray, channels_last: bool = False) -> Run:
    import torch

    x = torch.from_numpy(images)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)

    def run() -> np.ndarray:
        with torch.no_grad():
            return model(x).numpy()

    return run


def _ours(setting: Setting) -> Any:
    import porter

    return porter.create_model(setting.variant, setting.artifact)


def _timm(setting: Setting) -> Any:
    import torch

    from porter.models.timm_import import import_timm

    model = import_timm().create_model(f"tf_mobilenetv3_{setting.variant}").eval()
    model.load_state_dict(torch.load(setting.artifact, weights_only=True))
    return model


def timm_eager(setting: Setting) -> Run:
    """timm's model as it is."""
    return _torch_run(_timm(setting), setting.images)


def timm_channels_last(setting: Setting) -> Run:
    """timm's model and images in channels_last."""
    import torch

    return _torch_run(_timm(setting).to(memory_format=torch.channels_last), setting.images, channels_last=True)


def timm_compiled(setting: Setting) -> Run:
    """timm's model under torch.compile."""
    import torch

    return _torch_run(torch.compile(_timm(setting)), setting.images)


def ours_eager(setting: Setting) -> Run:
    """``porter.create_model``."""
    return _torch_run(_ours(setting), setting.images)


def ours_compiled(setting: Setting) -> Run:
    """``porter.create_model`` under torch.compile."""
    import torch

    return _torch_run(torch.compile(_ours(setting)), setting.images)


def ours_folded(setting: Setting) -> Run:
    """``porter.create_model`` with ``fold_bn``."""
    import porter

    return _torch_run(porter.create_model(setting.variant, setting.artifact, fold_bn=True), setting.images)


def ours_folded_compiled(setting: Setting) -> Run:
    """The same under torch.compile."""
    import torch

    import porter

    model = porter.create_model(setting.variant, setting.artifact, fold_bn=True)
    return _torch_run(torch.compile(model), setting.images)


def ours_deployed(setting: Setting) -> Run:
    """``porter.deploy``, given arrays, as ONNX Runtime is."""
    import porter

    model = porter.deploy(_ours(setting), 224, threads=setting.threads)
    return lambda: model(setting.images)


def _exported(setting: Setting, suffix: str) -> Path:
    """What ``convert -o x<suffix>`` writes."""
    from porter.exports.convert import convert

    path, _ = convert(setting.source, setting.folder / f"model{suffix}", setting.variant)
    return path


def onnx_runtime(setting: Setting) -> Run:
    """ONNX Runtime on the model that ``convert -o x.onnx`` writes."""
    return _onnx_run(_exported(setting, ".onnx").read_bytes(), "image", setting)


def openvino(setting: Setting) -> Run:
    """OpenVINO on the same model."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_PRECISION_HINT"] = "f32"  # else it rounds to bfloat16 where the processor has that
    model = openvino.Core().compile_model(str(_exported(setting, ".onnx")), "CPU", options)
    return lambda: model(setting.images)[0]


def executorch(setting: Setting) -> Run | None:
    """ExecuTorch with XNNPACK on what ``release --pte`` writes: one image at a time."""
    if len(setting.images) > 1:
        return None
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    from porter.models.create import open_model
    from porter.releases.exports import ExportInputs, write_pte

    opened = open_model(setting.artifact)
    run = write_pte(ExportInputs(opened, setting.artifact, None, setting.images, setting.folder / "x.pte"))
    _unsafe_reset_threadpool(setting.threads)
    return lambda: run(setting.images)


def _onnx_run(model: bytes, name: str, setting: Setting) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {name: setting.images})[0]


def _frozen_graph(setting: Setting) -> Any:
    import tensorflow as tf

    [path] = setting.source.glob("*.pb")
    return tf.compat.v1.GraphDef.FromString(path.read_bytes())


def _tf2onnx(setting: Setting) -> Any:
    import tf2onnx

    model, _ = tf2onnx.convert.from_graph_def(
        _frozen_graph(setting), input_names=[GIVEN], output_names=[WANTED], inputs_as_nchw=[GIVEN], opset=17
    )  # onnx2torch knows no later opset
    return model


def _without_background(run: Run) -> Run:
    return lambda: run()[:, 1:]


def frozen_in_onnx_runtime(setting: Setting) -> Run:
    """ONNX Runtime on the frozen graph, by tf2onnx."""
    return _without_background(_onnx_run(_tf2onnx(setting).SerializeToString(), GIVEN, setting))


def frozen_in_onnx2torch(setting: Setting) -> Run:
    """PyTorch on the frozen graph, by tf2onnx and onnx2torch."""
    from porter.models.timm_import import import_timm

    import_timm()  # torchvision's missing operators, which onnx2torch needs as well
    from onnx2torch import convert

    return _without_background(_torch_run(convert(_tf2onnx(setting)).eval(), setting.images))


def tensorflow(setting: Setting) -> Run:
    """TensorFlow on the frozen graph."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(_frozen_graph(setting), name="")
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=setting.threads, inter_op_parallelism_threads=1)
    run = tf.compat.v1.Session(graph=graph, config=config).make_callable(WANTED, [GIVEN])
    nhwc = setting.nhwc
    return _without_background(lambda: run(nhwc))


def lite_rt(setting: Setting) -> Run:
    """LiteRT on the model that ``convert -o x.tflite`` writes."""
    from ai_edge_litert.interpreter import Interpreter

    nhwc = setting.nhwc
    interpreter = Interpreter(str(_exported(setting, ".tflite")), num_threads=setting.threads)
    given = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(given, nhwc.shape)
    interpreter.allocate_tensors()
    output = interpreter.get_output_details()[0]["index"]

    def run() -> np.ndarray:
        interpreter.set_tensor(given, nhwc)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


FORMS: dict[str, Callable[[Setting], Run | None]] = {
    "timm eager": timm_eager,
    "timm channels_last": timm_channels_last,
    "timm torch.compile": timm_compiled,
    "ours eager": ours_eager,
    "ours torch.compile": ours_compiled,
    "ours folded": ours_folded,
    "ours folded, torch.compile": ours_folded_compiled,
    "ours deployed": ours_deployed,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "ExecuTorch": executorch,
    "LiteRT": lite_rt,
    "ONNX Runtime, tf2onnx": frozen_in_onnx_runtime,
    "onnx2torch": frozen_in_onnx2torch,
    "TensorFlow": tensorflow,
}
COMPILED = ("timm torch.compile", "ours torch.compile", "ours folded, torch.compile")


def answer(form: str, variant: str, artifact: Path, batch: int, threads: int) -> None:
    """Build ``form`` in this process, say how far its logits are off (null: no such form), then take turns.

    A turn is asked for by a line on standard input and answered by one of JSON: the seconds of each call.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    source = SHARED / FOLDERS[variant]
    with np.load(source / "expected.npz") as file:
        recorded, logits = file["input"], file["logits"][:, 1:]
    images = np.ascontiguousarray(np.resize(recorded, (batch, *recorded.shape[1:])).transpose(0, 3, 1, 2))
    expected = np.resize(logits, (batch, logits.shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        run = FORMS[form](Setting(variant, source, artifact, images, threads, Path(folder)))
        if run is None:
            print("null", file=answers)
            return
        error = float(np.abs(run() - expected).max() / np.abs(expected).max())
        print(json.dumps({"logits_error": error}), file=answers)
        for _ in sys.stdin:
            warm, calls = (3, 5) if batch == 1 else (1, 1)
            print(json.dumps(turn(run, warm, calls)), file=answers)


def measure(
    variant: str, artifact: Path, batch: int, threads: int, rounds: int, forms: list[str]
) -> list[dict[str, Any]]:
    """Every form of one variant at one batch size, each in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes, errors = {}, {}
    for form in forms:
        setting = ["--variants", variant, "--batches", str(batch), "--threads", str(threads)]
        command = [sys.executable, __file__, "--form", form, "--artifact", str(artifact), *setting]
        pipe, log = subprocess.PIPE, artifact.with_name(f"{form}.log")
        with log.open("w") as file:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, text=True, env=environment)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"failed: {' '.join(command)}\n{log.read_text()[-2000:]}")
        if (ready := json.loads(line)) is not None:
            processes[form], errors[form] = process, ready["logits_error"]
    seconds: dict[str, list[float]] = {form: [] for form in processes}
    order, shuffle = list(processes), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for form in order:
            time.sleep(PAUSE)
            print(file=processes[form].stdin, flush=True)
            seconds[form] += json.loads(processes[form].stdout.readline())
    for process in processes.values():
        process.communicate()
    times = {form: timed(measured) for form, measured in seconds.items()}
    base = times["timm eager"].median
    return [
        {"variant": variant, "threads": threads, "batch": batch, "form": form, **one.as_json()}
        | {"logits_error": errors[form], "ratio": one.median / base}
        for form, one in times.items()
    ]


def main() -> None:
    """Print a table a setting, and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores()}))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=0, help="20 at batch 1, 10 at others when left out")
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes a minute to compile")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help="only these, timm eager among them")
    parser.add_argument("--name", default="inference", help="of the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--form", choices=list(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.form:
        answer(given.form, given.variants[0], given.artifact, given.batches[0], given.threads[0])
        return
    from porter.exports.convert import convert

    forms = given.forms or [form for form in FORMS if not (given.no_compile and form in COMPILED)]
    everything = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in given.variants:
            artifact, _ = convert(SHARED / FOLDERS[variant], Path(folder) / f"{variant}.pth", variant)
            for threads in given.threads:
                for batch in given.batches:
                    rounds = given.rounds or (20 if batch == 1 else 10)
                    rows = measure(variant, artifact, batch, threads, rounds, forms)
                    everything += rows
                    print(f"\n{variant}, {threads} thread(s), batch {batch}\n\n{shown(rows)}", flush=True)
                    write_result(given.name, everything, given.results)


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
