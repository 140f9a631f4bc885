"""Verdicts and speed of the six on a device: the record is for docs/benchmarks.md.

    python scripts/device_check.py cuda CHECKPOINTS [-o FILE] [--seconds 480]

CHECKPOINTS is a folder of released folders. Printed and written (JSON) are verdicts with TF32 on and off, each form's
time over that of timm's network in the same form, and the rate of a float32 evaluation. It ends after --seconds, and
says what it has left out. --variants, --batches and --size make it smaller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import porter
from porter.mapping.files import load_variant
from porter.models.timm_import import import_timm
from porter.port import plan_port

ROUNDS = 5  # of both networks by turns; the median counts


def forms(device: torch.device) -> Iterator[tuple[str, Callable[[nn.Module], nn.Module], dict[str, Any]]]:
    """Name of a form, what makes it of a network, and settings of its run."""
    last = {"memory_format": torch.channels_last}
    yield "float32", lambda model: model, {}
    yield "bf16 autocast", lambda model: model, {"autocast": True}
    yield "channels_last", lambda model: model.to(**last), last
    yield "torch.compile", torch.compile, {}
    if device.type == "cuda":
        yield "CUDA graphs", lambda model: torch.compile(model, mode="reduce-overhead"), {}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The time of one call, on a device that has finished before and after."""
    synchronize = getattr(torch, device.type).synchronize
    count, start = 0, time.perf_counter()
    synchronize()
    while time.perf_counter() - start < 0.2 or not count:
        run()
        count += 1
        synchronize()
    return (time.perf_counter() - start) / count


def ratios(variant: str, device: torch.device, batches: list[int], size: int) -> Iterator[dict[str, Any]]:
    """Ours over timm's, form by form."""
    name = load_variant(variant).timm
    for form, make, settings in forms(device):
        networks = [porter.create_model(variant), import_timm().create_model(name).eval()]
        made = [make(network.to(device)) for network in networks]
        for batch in batches:
            images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
            if "memory_format" in settings:
                images = images.to(memory_format=settings["memory_format"])

            def once(model: nn.Module, images: torch.Tensor = images, half: bool = "autocast" in settings) -> None:
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                    model(images)

            for model in made:
                seconds(lambda model=model: once(model), device)  # compiles
            rounds = [[seconds(lambda model=model: once(model), device) for model in made] for _ in range(ROUNDS)]
            ours, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
            yield {
                "variant": variant,
                "form": form,
                "batch": batch,
                "images_per_second": batch / ours,
                "ratio_to_timm": ours / theirs,
            }
        torch.compiler.reset()


def verdicts(source: Path, device: str, size: int) -> Iterator[dict[str, Any]]:
    """The port on the device against the tf.nn graph, with TF32 convolutions and without."""
    for tf32 in (True, False):
        torch.backends.cudnn.allow_tf32 = tf32
        verdict = porter.verify(source, reference="tf.nn", device=device, sizes=[(size, size)])
        causes = [cause.what for cause in verdict.causes]
        yield {
            "variant": verdict.variant,
            "tf32": tf32,
            "passed": verdict.passed,
            "says": verdict.sentence(),
            "causes": causes,
        }


def rate(source: Path, device: torch.device, batch: int, size: int) -> float:
    """Images a second of a classifier that gets them decoded, as evaluate does batch by batch."""
    model = porter.create_model(str(source)).to(device)
    images = torch.rand(batch, 3, size, size)

    def once() -> None:
        with torch.inference_mode():
            model(images.to(device)).cpu()

    once()
    return batch / seconds(once, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    device, start = torch.device(given.device), time.monotonic()
    sources = {plan_port(folder).mapping.variant: folder for folder in sorted(given.checkpoints.glob("v3-*_float"))}
    chosen = given.variants or list(sources)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "verdicts": [], "speed": [], "left_out": []}
    work = [
        ("verdicts", variant, lambda v=variant: verdicts(sources[v], given.device, given.size)) for variant in chosen
    ]
    work += [("speed", variant, lambda v=variant: ratios(v, device, given.batches, given.size)) for variant in chosen]
    for part, variant, rows in work:
        for row in rows():
            found[part].append(row)
            print(row, flush=True)
            if time.monotonic() - start > given.seconds:
                found["left_out"].append(f"rest of {part} of {variant}")
                break
    first = sources[chosen[0]]
    found["evaluated_per_second"] = rate(first, device, max(given.batches), given.size)
    print(f"{card}: {found['evaluated_per_second']:.0f} images a second; left out: {found['left_out'] or 'nothing'}")
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
