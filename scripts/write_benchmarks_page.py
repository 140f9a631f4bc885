"""Write docs/benchmarks.md, its plots and README's rows from benchmarks/results; a test checks that they are current.

.venv/bin/python scripts/write_benchmarks_page.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, README, IMAGES = (
    ROOT / "benchmarks" / "results",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "README.md",
    ROOT / "docs" / "images",
)
START, END = "<!-- written by scripts/write_benchmarks_page.py -->", "<!-- end -->"
SETTINGS = [("small_075", 1), ("small_075", 32), ("large_100", 1), ("large_100", 32)]
# Form of benchmarks/inference.py -> what it is called here
FORMS = {
    "ours deployed": "`porter.deploy`",
    "ONNX Runtime": "ONNX Runtime on `convert -o x.onnx`",
    "OpenVINO": "OpenVINO on the same file",
    "ExecuTorch": "ExecuTorch on `release --pte`",
    "LiteRT": "LiteRT on `convert -o x.tflite`",
    "ONNX Runtime, tf2onnx": "ONNX Runtime on the frozen graph, by tf2onnx",
    "TensorFlow": "TensorFlow on the frozen graph",
    "ours eager": "`porter.create_model`",
    "ours torch.compile": "`torch.compile(porter.create_model(...))`",
    "ours folded": "`porter.fold(...)`",
    "ours folded, torch.compile": "`torch.compile(porter.fold(...))`",
    "timm eager": "timm",
    "timm channels_last": "timm, channels_last",
    "timm torch.compile": "`torch.compile` of timm",
    "onnx2torch": "onnx2torch of the frozen graph",
}
COMMANDS = {
    "import torch": "`import torch`",
    "import tensorflow": "`import tensorflow`",
    "mnv3-port --help": "`mnv3-port --help`",
    "mnv3-port inspect": "`mnv3-port inspect`",
    "mnv3-port convert, .safetensors": "`mnv3-port convert -o x.safetensors`",
    "mnv3-port convert, .onnx": "`mnv3-port convert -o x.onnx`",
    "mnv3-port convert, .tflite": "`mnv3-port convert -o x.tflite`",
    "mnv3-port convert": "`mnv3-port convert -o x.pth`",
    "mnv3-port convert, 100 of them": "`mnv3-port convert` of 100 checkpoints to `.safetensors`",
    "the user's own script": "what a user would write: TensorFlow reads, timm takes, torch saves",
    "mnv3-port verify, recorded": "`mnv3-port verify`, float32 outputs recorded",
    "mnv3-port verify, both questions recorded": "`mnv3-port verify`, recorded for both questions",
    "mnv3-port verify, live graph": "`mnv3-port verify`, live graph",
    "mnv3-port release": "`mnv3-port release`",
}
GOALS = {  # benchmarks/inference.py: form, what it is held against, at most
    "deployed : bare ONNX Runtime session": ("ours deployed", "ONNX Runtime", 1.0),
    "deployed : tf2onnx's graph in ONNX Runtime": ("ours deployed", "ONNX Runtime, tf2onnx", 0.8),
    "deployed : timm eager": ("ours deployed", "timm eager", 0.3),
    "eager : timm eager": ("ours eager", "timm eager", 0.85),
    "torch.compile : torch.compile of timm": ("ours torch.compile", "timm torch.compile", 0.8),
}
FOLDED_GOALS = {  # (form, what it is held against) -> at most, in the settings that it is aimed at
    ("ours folded", "timm eager"): {("small_075", 1): 0.7, ("small_075", 32): 0.5},
    ("ours folded, torch.compile", "timm torch.compile"): {("small_075", 1): 0.8, ("small_075", 32): 0.85},
}


def read(name: str) -> Any:
    """The results of one benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def cost_table(cost: Any) -> str:
    """Whole processes."""
    base = cost["commands"]["import torch"]["median"]
    rows = []
    for name, shown in COMMANDS.items():
        found = cost["commands"][name]
        spread = f"{found['low']:.2f} - {found['high']:.2f}"
        ratio = f"{found['median'] / base:.2f}"
        rows.append([shown, f"{found['median']:.2f}", spread, ratio, f"{found['peak_mib']:.0f}"])
    return rows_of(["", "seconds", "quartiles", "x `import torch`", "peak MiB"], rows)


def medians(inference: Any, threads: int) -> dict[tuple[str, int], dict[str, float]]:
    """(variant, batch) -> form -> seconds."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in inference:
        if row["threads"] == threads:
            found.setdefault((row["variant"], row["batch"]), {})[row["form"]] = row["median"]
    return found


def inference_table(inference: Any, threads: int) -> str:
    """Ratios to timm's model, and the largest error of the logits."""
    by_setting = medians(inference, threads)
    errors: dict[str, float] = {}
    for row in inference:
        errors[row["form"]] = max(errors.get(row["form"], 0.0), row["logits_error"])
    order = sorted(by_setting["small_075", 1], key=lambda form: by_setting["small_075", 1][form])
    rows = []
    for form in order:
        cells = []
        for setting in SETTINGS:
            times = by_setting[setting]
            cells.append(f"{times[form] / times['timm eager']:.2f}" if form in times else "")
        rows.append([FORMS[form], *cells, f"{errors[form]:.1e}"])
    return rows_of(["form", *(f"{variant}, batch {batch}" for variant, batch in SETTINGS), "logits off by"], rows)


def goals_table(inference: Any) -> str:
    """What was aimed at, in each setting; what is missed is bold."""
    settings = [(threads, *setting) for threads in (1, 2) for setting in SETTINGS]
    by_threads = {threads: medians(inference, threads) for threads in (1, 2)}
    rows = []
    for name, (form, against, most) in GOALS.items():
        cells = []
        for threads, variant, batch in settings:
            times = by_threads[threads][variant, batch]
            ratio = times[form] / times[against]
            cells.append(f"{ratio:.2f}" if round(ratio, 2) <= most else f"**{ratio:.2f}**")
        rows.append([name, f"{most}", *cells])
    heads = [f"{variant}, {batch}, {threads} thread{'s' * (threads > 1)}" for threads, variant, batch in settings]
    return rows_of(["ratio", "at most", *heads], rows)


def folded_table(folding: Any) -> str:
    """Folded models, and the goals; what misses them is bold."""
    times, rows = medians(folding, 1), []
    for (form, against), goals in FOLDED_GOALS.items():
        cells = []
        for setting, measured in times.items():
            ratio, most = measured[form] / measured[against], goals.get(setting)
            missed = most is not None and round(ratio, 2) > most
            told = f"**{ratio:.2f}**" if missed else f"{ratio:.2f}"
            cells.append(told if most is None else f"{told} (at most {most})")
        rows.append([f"{FORMS[form]} : {FORMS[against]}", *cells])
    return rows_of(["ratio", *(f"{variant}, batch {batch}" for variant, batch in times)], rows)


def eight_bits_table(found: Any) -> str:
    """Images a second of 8-bit classification."""
    speeds, same = found["images_per_second"], found["same_top1"]
    first = next(iter(speeds))
    rows = [[name, f"{speed:.0f}", f"{speed / speeds[first]:.2f}", f"{same[name]}"] for name, speed in speeds.items()]
    return rows_of(["", "images per second", "x the first", f"its top-1, of {found['images']}"], rows)


def page() -> str:
    """docs/benchmarks.md."""
    cost, inference, evaluating, reading = (read(name) for name in ("cost", "inference", "evaluating", "reading"))
    claims = rows_of(["", ""], [[name, f"{value:.2f}"] for name, value in cost["claims"].items()])
    speeds = evaluating["images_per_second"]
    ours, theirs = speeds["mnv3-port evaluate"], speeds["timm's parts"]
    rates, listing = reading["gib_per_second"], reading["list"]
    cat = rates["cat file > /dev/null"]
    folding, eight_bits = read("folding"), read("eight_bits")
    return f"""# Benchmarks

`make bench` measures everything and writes `benchmarks/results/*.json`. `scripts/write_benchmarks_page.py` writes this page from these files.
The programs that are compared take turns, each in a process of its own. The machine is shared and has two cores, so the ratios mean more than the seconds.

## Commands

The table has whole processes with small_075 (`benchmarks/cost.py`):

{cost_table(cost)}

![What converting costs](images/cost.svg)

{claims}

## Inference

Times are multiples of timm's eager model, with one thread, 224 px and float32 (`benchmarks/inference.py`). "Logits off by" is the largest distance from TensorFlow's recorded logits, over their scale.

{inference_table(inference, 1)}

![Inference beside timm's model](images/inference.svg)

With two threads:

{inference_table(inference, 2)}

The goals; bold figures miss them:

{goals_table(inference)}

`porter.deploy` runs batches in parts of four images for each thread (at 224 px). Then the output of one layer is still in the cache when the next layer reads it.
ExecuTorch takes one image at a time. OpenVINO is set to float32, because by default it rounds to bfloat16 on this processor.

## Folded batch norms

`porter.fold` and `create_model(..., fold_bn=True)` fold batch norms into the convolutions. With one thread, in a run of its own
(`benchmarks/inference.py --name folding`):

{folded_table(folding)}

`create_model` tells the C library to keep up to 128 MiB of freed memory. Otherwise the library returns the memory of each layer's output to the system, and
the next layer takes a page fault for every 4 KiB. timm's models run without this, in processes of their own.

## Evaluation

`mnv3-port evaluate` decodes and classifies {ours / theirs:.2f} x as many photos per second as timm's parts do
({ours:.0f} and {theirs:.0f}), with the same top-1 on {evaluating["same_top1"]} of {evaluating["images"]}
(`benchmarks/evaluating.py`: one process, one thread, the same decoder and the same pixels).

8-bit small 1.0 (`benchmarks/eight_bits.py`: one thread, decoding included):

{eight_bits_table(eight_bits)}

`evaluate` runs the interpreter's own kernels, whose levels are the port's. XNNPACK's round otherwise.

## On a GPU

`scripts/device_check.py cuda CHECKPOINTS` measures there, in at most 8 minutes: verdicts of the six with TF32 on and off, times over timm's at batch 1, 32 and 256 (float32, bfloat16
autocast, channels_last, compiled, CUDA graphs), and the rate of an evaluation. It has not been run on an accelerator yet.

## Reading

Reading a checkpoint of 1 GiB is {rates["read, no checksums"] / cat:.2f} x as fast as `cat file > /dev/null`, {rates["read, checksums"] / cat:.2f} x with checksums. Opening one and listing its
{listing["variables"]:,} variables takes {listing["median"] * 1e3:.0f} ms. Time and memory grow linearly (`benchmarks/reading.py`, `benchmarks/results/growth.svg`).
"""


def readme_rows() -> str:
    """README's rows."""
    cost, speeds = read("cost"), read("evaluating")["images_per_second"]
    times, folded = (medians(read(name), 1)["small_075", 1] for name in ("inference", "folding"))
    claims = cost["claims"]
    script = claims["convert, .pth: x the user's own script"]
    faster = speeds["mnv3-port evaluate"] / speeds["timm's parts"]
    rows = [
        [
            "`convert -o x.safetensors`, the whole process",
            f"{claims['convert, .safetensors: x import torch']:.2f} x `import torch`",
        ],
        ["`convert -o x.pth`", f"{script:.2f} x the script that a user would write"],
        ["`porter.deploy`, one image of small_075", f"{times['ours deployed'] / times['timm eager']:.2f} x timm eager"],
        ["`porter.create_model`, the same", f"{times['ours eager'] / times['timm eager']:.2f} x timm eager"],
        ["`porter.fold` of it", f"{folded['ours folded'] / folded['timm eager']:.2f} x timm eager"],
        ["`evaluate`, photos per second", f"{faster:.2f} x timm's parts"],
    ]
    return rows_of(["", ""], rows)


def readme() -> str:
    """README.md with its rows."""
    text = README.read_text()
    return re.sub(
        f"{re.escape(START)}.*?{re.escape(END)}", lambda _: f"{START}\n{readme_rows()}\n{END}", text, flags=re.DOTALL
    )


def plots() -> None:
    """Two plots, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mnv3-port"
    from matplotlib import pyplot

    cost, times = read("cost"), medians(read("inference"), 1)
    names = [name for name in COMMANDS if name.startswith(("mnv3-port convert", "the user", "import"))]
    names.remove("mnv3-port convert, 100 of them")
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    seconds = [cost["commands"][name]["median"] for name in names]
    axes.barh([name.replace("mnv3-port ", "") for name in names], seconds, color="#3b6ea5")
    axes.set_xlabel("seconds, whole process")
    axes.invert_yaxis()
    figure.savefig(IMAGES / "cost.svg", metadata={"Date": None})
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    order = sorted(times["small_075", 1], key=lambda form: times["small_075", 1][form])
    for panel, variant in zip(panels, ("small_075", "large_100"), strict=True):
        for offset, batch, colour in ((-0.2, 1, "#3b6ea5"), (0.2, 32, "#d08c3a")):
            found = times[variant, batch]
            ratios = [found.get(form, 0.0) / found["timm eager"] for form in order]
            panel.barh(
                [place + offset for place in range(len(order))], ratios, 0.4, color=colour, label=f"batch {batch}"
            )
        panel.set_yticks(range(len(order)), order)
        panel.set_title(variant)
        panel.set_xlabel("x timm eager, one thread")
        panel.legend()
    panels[0].invert_yaxis()
    figure.savefig(IMAGES / "inference.svg", metadata={"Date": None})
    pyplot.close("all")


if __name__ == "__main__":
    PAGE.write_text(page())
    README.write_text(readme())
    plots()
