"""Where the deployed form's time goes: each layer beside its floor and beside ONNX Runtime's kernel for it.

.venv/bin/python benchmarks/kernels.py [--variant small_075] [--batch 1] [--threads 1] [--rounds 200]

The floor is what the layer's multiply-accumulates take at the pace of this machine's matrix product (measured: MKL,
1024 x 1024), or its bytes at the pace of a copy, whichever is longer. Dense are squeeze-excite, head and classifier;
between is Python for us, and for ONNX Runtime what its convolutions do not fuse: activations, sums, gates. Layers are
timed inside whole runs, so their sum is less than the whole by what Python spends between them. Compiled, all but
the matrix products is loops, each of them of several layers.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference import FOLDERS
from timing import RESULTS, SHARED, interleaved, table, timed, write_result

import porter
from porter.models import deployment
from porter.release.exports import onnx_model

Seconds = dict[str, float]


def kernel_size(conv: Any) -> int:
    """Taps of a convolution that reads all channels."""
    return 1 if conv.pointwise else conv.weight.shape[1] * conv.weight.shape[2]


def kinds(deployed: deployment.Deployed) -> dict[int, tuple[str, str, float, float]]:
    """By identity of each step of ``deployed``: name, kind, multiply-accumulates and bytes for one image."""
    found: dict[int, tuple[str, str, float, float]] = {}

    def convolution(name: str, conv: Any) -> None:
        kind = "1x1" if conv.pointwise else "depthwise" if conv.groups > 1 else "stem"
        positions = conv.size_after[0] * conv.size_after[1]
        channels = len(conv.bias)
        channels_in = channels if kind == "depthwise" else conv.weight.numel() // channels // kernel_size(conv)
        read = positions * conv.stride[0] * conv.stride[1] * channels_in
        moved = 4.0 * (read + positions * channels + conv.weight.numel())
        found[id(conv)] = name, kind, float(positions * conv.weight.numel()), moved

    convolution("stem", deployed.stem)
    for step in deployed.steps:
        for name, conv in step.convolutions:
            convolution(name.removesuffix("_output"), conv)
        if step.se:
            weights = step.se.reduce.weight.numel() + step.se.expand.weight.numel()
            positions = step.project.size_after[0] * step.project.size_after[1]
            moved = 4.0 * (3 * positions * step.se.reduce.weight.shape[0] + weights)
            found[id(step.se)] = f"{step.block.endpoint}/se", "dense", float(weights), moved
        convolution(f"{step.block.endpoint}/project", step.project)
    convolution("last", deployed.last)
    for product in deployed.products:
        weights = product.weight.numel()
        found[id(product)] = "head" if product.is_head else "classifier", "dense", float(weights), 4.0 * weights
    return found


def layer_seconds(deployed: deployment.Deployed, x: torch.Tensor, rounds: int) -> tuple[dict[int, float], float]:
    """Median seconds of each step by identity, and of a whole run that is not looked into."""
    taken: dict[int, list[float]] = defaultdict(list)
    whole = []
    classes = (deployment._Conv, deployment._SqueezeExcite, deployment._Dense)
    inside: list[object] = []

    def timing(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(self: object, *given: Any) -> Any:
            if inside:  # squeeze-excite counts as one
                return call(self, *given)
            inside.append(self)
            start = time.perf_counter()
            result = call(self, *given)
            taken[id(self)].append(time.perf_counter() - start)
            inside.pop()
            return result

        return timed_call

    originals = {cls: cls.run for cls in classes}
    for number in range(2 * rounds):
        for cls, call in originals.items():
            cls.run = timing(call) if number % 2 else call
        start = time.perf_counter()
        deployed(x)
        if number % 2 == 0:
            whole.append(time.perf_counter() - start)
    for cls, call in originals.items():
        cls.run = call
    return {key: statistics.median(seconds) for key, seconds in taken.items()}, statistics.median(whole)


def compiled_seconds(model: Any, x: torch.Tensor, rounds: int) -> Seconds:
    """Seconds of the compiled form by kind of kernel, from torch's profiler, and of a whole run without it."""
    plain, profiled = porter.deploy(model), porter.deploy(model)
    plain.compile(options={"cpp_wrapper": True})
    whole = interleaved({"": lambda: plain(x)}, rounds=1, warm=5, calls=rounds)[""].median
    profiled.compile(options={"cpp.enable_kernel_profile": True})
    for _ in range(5):
        profiled(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            profiled(x)
    found: Seconds = {"1x1": 0.0, "dense": 0.0, "loops": 0.0}
    for event in profile.key_averages():
        kind = {"aten::mm": "1x1", "aten::addmm": "dense"}.get(event.key)
        if kind or event.key.startswith("graph_"):
            found[kind or "loops"] += event.self_cpu_time_total / rounds / 1e6
    return found | {"whole": whole}


def paces() -> tuple[float, float]:
    """Multiply-accumulates a second of a matrix product, bytes a second of a copy."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    big, copy = torch.randn(1 << 24), torch.empty(1 << 24)
    times = interleaved({"product": lambda: torch.mm(a, b), "copy": lambda: copy.copy_(big)}, rounds=15)
    return 1024**3 / times["product"].low, 2 * 4 * len(big) / times["copy"].low


def onnx_seconds(model: Any, images: np.ndarray, threads: int, rounds: int) -> tuple[Seconds, float]:
    """ONNX Runtime's seconds by kind of kernel, from its own profiler, and of a whole run without it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as temporary:
        path, _ = onnx_model(model, Path(temporary) / "model", images[:1])

        def session(profile: bool) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.enable_profiling = profile
            options.profile_file_prefix = str(Path(temporary) / "profile")
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        plain, profiled = session(False), session(True)
        whole = interleaved({"": lambda: plain.run(None, {"image": images})}, rounds=1, warm=5, calls=rounds)[""].median
        for _ in range(rounds):
            profiled.run(None, {"image": images})
        events = json.loads(Path(profiled.end_profiling()).read_text())
    nodes: dict[str, list[float]] = defaultdict(list)
    operators = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["name"]].append(event["dur"] / 1e6)
            operators[event["name"]] = event["args"]
    by_kind: Seconds = defaultdict(float)
    for name, seconds in nodes.items():
        by_kind[_onnx_kind(operators[name])] += timed(seconds).median
    return by_kind, whole


def _onnx_kind(arguments: dict[str, Any]) -> str:
    shapes = [next(iter(shape.values())) for shape in arguments["input_type_shape"]]
    if arguments["op_name"] in {"Conv", "FusedConv"}:
        weight = shapes[1]
        return "1x1" if weight[2:] == [1, 1] else "depthwise" if weight[1] == 1 else "stem"
    return "dense" if "Gemm" in arguments["op_name"] else "between"


def main() -> None:
    """Print a row a layer and a row a kind, and write both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small_075", choices=list(FOLDERS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    checkpoint = SHARED / FOLDERS[given.variant]
    model = porter.create_model(given.variant, checkpoint if checkpoint.is_dir() else None)
    deployed = porter.deploy(model)
    images = np.random.default_rng(0).uniform(-1, 1, (given.batch, 3, 224, 224)).astype(np.float32)
    x = torch.from_numpy(images)
    for _ in range(5):
        deployed(x)
    seconds, whole = layer_seconds(deployed, x, given.rounds)
    pace, bandwidth = paces()
    rows, by_kind = [], defaultdict(lambda: [0.0, 0.0])
    for key, (name, kind, macs, moved) in kinds(deployed).items():
        floor = given.batch * max(macs / pace, moved / bandwidth)
        speed = given.batch * macs / seconds[key] / 1e9
        rows.append([name, kind, f"{seconds[key] * 1e6:.0f}", f"{floor * 1e6:.0f}", f"{speed:.1f}"])
        by_kind[kind][0] += seconds[key]
        by_kind[kind][1] += floor
    print(table(["layer", "kind", "us", "floor us", "GMAC/s"], rows))
    theirs, their_whole = onnx_seconds(model, images, given.threads, given.rounds)
    between = whole - sum(ours for ours, _ in by_kind.values())
    by_kind["between"] = [between, 0.0]
    kind_rows = [
        [kind, f"{ours * 1e6:.0f}", f"{floor * 1e6:.0f}", f"{theirs.get(kind, 0) * 1e6:.0f}"]
        for kind, (ours, floor) in by_kind.items()
    ]
    kind_rows.append(["whole", f"{whole * 1e6:.0f}", "", f"{their_whole * 1e6:.0f}"])
    print(f"\nmatrix product {pace / 1e9:.0f} GMAC/s, copy {bandwidth / 2**30:.0f} GiB/s\n")
    print(table(["kind", "us", "floor us", "ONNX Runtime us"], kind_rows))
    compiled = compiled_seconds(model, x, given.rounds)
    against = theirs | {"loops": sum(theirs[kind] for kind in ("stem", "depthwise", "between")), "whole": their_whole}
    compiled_rows = [[kind, f"{ours * 1e6:.0f}", f"{against[kind] * 1e6:.0f}"] for kind, ours in compiled.items()]
    print("\n" + table(["kind", "compiled us", "ONNX Runtime us"], compiled_rows))
    found = {
        "pace": pace,
        "bandwidth": bandwidth,
        "kinds": by_kind,
        "onnx_kinds": theirs,
        "whole": whole,
        "compiled": compiled,
    }
    write_result(f"kernels-{given.variant}", found | {"onnx_whole": their_whole}, given.results)


if __name__ == "__main__":
    main()
