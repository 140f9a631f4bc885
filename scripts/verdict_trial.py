"""Are verdicts right? No alarm on honest ports, and no injected fault missed: the tables in docs/verification.md.

.venv/bin/python scripts/verdict_trial.py alarms [--seeds 50] [--shared ../shared]
.venv/bin/python scripts/verdict_trial.py faults [--shared ../shared]

``alarms`` verifies every checkpoint of the shared folder on seeded noise, structured images and photos, at several
sizes. ``faults`` makes one mistake at a time in trained networks. It counts the mistakes that no endpoint shows (a
weight behind a gate that is saturated on these images), and those that the verdict misses; the verdict also compares
the weights. Exits with 1 on a false alarm or a missed fault.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from faults import faults, one_from, with_fault

from porter.artifacts.artifact import Artifact
from porter.mapping.options import PortOptions
from porter.network.nodes import endpoint_names
from porter.parity.candidates.own import ported_model, unrounded
from porter.parity.samples import noise, photos, structured
from porter.parity.verify import Against, Check, check_sample, open_check
from porter.port import plan_port

SIZES = ((224, 224), (97, 130), (160, 193))
SEGMENTATION = ROOT / "tests" / "data" / "lraspp_small.yaml"


def sources(shared: Path) -> list[tuple[str, dict]]:
    """Every checkpoint that there is, and how to open it."""
    found: list[tuple[str, dict]] = []
    for folder in sorted((shared / "checkpoints").iterdir()):
        if folder.is_dir():
            found.append((str(folder), {}))
            found += [(str(path), {}) for path in sorted(folder.glob("*.tflite"))]
    small = shared / "checkpoints" / "v3-small_224_0.75_float"
    found += [(str(small / "pristine"), {"weights": "raw"}), (str(small / "ema"), {"reference": "meta"})]
    found += [(str(shared / "real" / "v3-small_224_1.0_float"), {})]
    found += [(str(shared / "real" / "v3-small_224_1.0_float" / "ema"), {"reference": "tf.nn"})]
    found += [(str(path), {}) for path in sorted((shared / "real").glob("*.tflite"))]
    found += [(str(shared / "real" / "lraspp_small_user.pb"), {"mapping": SEGMENTATION})]
    found += [(str(shared / "heads" / "deeplab_v3_small" / "frozen.pb"), {"mapping": SEGMENTATION})]
    return found


def alarms(shared: Path, seeds: int) -> int:
    """Print a row a checkpoint: how many comparisons, how close to the limits, how many alarms."""
    print("| source | reference | images | comparisons | float64, furthest | rms: median, largest | closest | alarms |")
    print("|---|---|---|---|---|---|---|---|")
    total = 0
    for source, options in sources(shared):
        check = open_check(source, None, PortOptions(**options))
        verdict, fixed = check.verdict, check.reference.size
        sizes = [fixed] if fixed else SIZES
        images = 0
        for size in sizes:
            pictures = photos(shared / "real" / "images", size, check.mapping.input, limit=25)
            for sample in (*(noise(size, seed) for seed in range(seeds)), structured(size), *pictures):
                check_sample(check, sample)
                images += 1
        ratios = [row.noise_ratio for row in verdict.rows if row.noise_ratio is not None]
        failed = sum(not row.passed for row in verdict.rows)
        total += failed
        function = verdict.function_distance()
        furthest = verdict.furthest()
        cells = [
            str(Path(source).relative_to(shared)),
            verdict.reference.split(" (")[0],
            str(images),
            str(len(verdict.rows)),
            "-" if function is None else f"{function:.1e}",
            f"{np.median(ratios):.2f}, {max(ratios):.2f}" if ratios else "-",
            f"{furthest.excess:.2f} of the limit ({furthest.endpoint})",
            str(failed),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\n{total} false alarms")
    return 1 if total else 0


def with_answers_kept(check: Check, samples: list) -> Check:
    """``check`` whose reference has run ``samples`` already: it gives the same answers to every candidate."""
    names = endpoint_names(check.network, 1)
    known = {id(sample.images): list(check.reference.run(sample.images, names)) for sample in samples}
    return check._replace(reference=replace(check.reference, run=lambda images, _names: iter(known[id(images)])))


class Noticed(NamedTuple):
    """Whether a fault shows at an endpoint, or in the weights, and the furthest endpoint's figure over its limit."""

    at_endpoints: bool
    in_weights: bool
    excess: float


def noticed(check: Check, samples: list, models: list, change) -> Noticed | None:
    """What the verdict says of a port with the fault ``change``; None where there is no such fault."""
    candidate = with_fault(models, change)
    if candidate is None:
        return None
    trial = check._replace(candidate=candidate, verdict=replace(check.verdict, rows=[], changed=[]))
    for sample in samples:
        check_sample(trial, sample)
    _, changed = unrounded(
        Artifact({name: tensor.numpy() for name, tensor in candidate.model.state_dict().items()}, None),
        check.port,
        "slim",
    )
    return Noticed(not trial.verdict.passed, bool(changed), trial.verdict.furthest().excess)


def injected(shared: Path) -> int:
    """Print a row a kind of fault and network: how many were made, how many missed, how near the nearest came."""
    print("| network | fault | made | shown by no endpoint | missed | least beyond the limit, where shown |")
    print("|---|---|---|---|---|---|")
    trained = [
        (shared / "real" / "v3-small_224_1.0_float", {}),
        (shared / "real" / "lraspp_small_user.pb", {"mapping": SEGMENTATION}),
    ]
    unnoticed = 0
    for source, options in trained:
        check = open_check(source, None, PortOptions(layout="slim", **options))
        samples = [noise((224, 224), 0), structured((224, 224)), noise((97, 130), 1)]
        check = with_answers_kept(check, samples)
        models = [ported_model(check.port, dtype) for dtype in ("float32", "float64")]
        made = list(faults(models[0].state_dict(), np.random.default_rng(0)))
        unnoticed += report(source.name, check, samples, models, made)
    folder = shared / "checkpoints" / "v3-small_224_0.75_float" / "pristine"
    check = open_check(folder, None, PortOptions(layout="slim"), Against("frozen"))
    samples = [noise((224, 224), 0), structured((224, 224))]
    check = with_answers_kept(check, samples)
    models = [ported_model(check.port, dtype) for dtype in ("float32", "float64")]
    raw = ported_model(plan_port(folder, PortOptions(weights="raw", layout="slim")), "float32").state_dict()
    averaged = models[0].state_dict()
    changed = [name for name in raw if not torch.equal(raw[name], averaged[name])]
    made = [("one variable raw instead of averaged", name, one_from(raw, name)) for name in changed]
    unnoticed += report("v3-small_224_0.75_float", check, samples, models, made)
    print(f"\n{unnoticed} faults missed")
    return 1 if unnoticed else 0


def report(network: str, check: Check, samples: list, models: list, made: list) -> int:
    """Make every fault, print a row a kind, give the number of those missed."""
    found: dict[str, list[Noticed]] = defaultdict(list)
    for kind, _, change in made:
        fault = noticed(check, samples, models, change)
        if fault is not None:
            found[kind].append(fault)
    total = 0
    for kind, all_of_it in found.items():
        shown = [fault for fault in all_of_it if fault.at_endpoints]
        missed = sum(not (fault.at_endpoints or fault.in_weights) for fault in all_of_it)
        least = min((fault.excess for fault in shown), default=np.nan)
        cells = (network, kind, len(all_of_it), len(all_of_it) - len(shown), missed, f"{least:.1e} x")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        total += missed
    return total


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["alarms", "faults"])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    arguments = parser.parse_args()
    shared = arguments.shared.resolve()
    return alarms(shared, arguments.seeds) if arguments.what == "alarms" else injected(shared)


if __name__ == "__main__":
    sys.exit(main())
