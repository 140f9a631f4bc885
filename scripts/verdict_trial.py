"""Are verdicts right? No alarm on honest ports, and no injected fault missed: the tables in docs/verification.md.

.venv/bin/python scripts/verdict_trial.py alarms [--seeds 50] [--shared ../shared]
.venv/bin/python scripts/verdict_trial.py faults [--shared ../shared]
.venv/bin/python scripts/verdict_trial.py forms
.venv/bin/python scripts/verdict_trial.py returned

``alarms`` verifies every checkpoint of the shared folder on seeded noise, structured images and photos, at several
sizes. ``faults`` makes one mistake at a time in trained networks. It counts the mistakes that no endpoint shows (a
weight behind a gate that is saturated on these images), and those that the verdict misses; the verdict also compares
the weights. ``forms`` verifies every form of right ports of odd networks of three blocks: classes, widths, dead
channels, means far from 0, images down to 1 x 1. ``returned`` verifies modules that change what they return. Exits with
1 on a false alarm or a missed fault.
"""

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import functional_port
from faults import faults, one_from, with_fault
from three_blocks import MAPPING, write_three_blocks

from porter.artifacts.artifact import Artifact, load_artifact
from porter.exports.convert import convert
from porter.exports.files import GRAPH_SUFFIXES, export_bytes
from porter.mapping.files import load_mapping
from porter.mapping.options import PortOptions
from porter.models.create import open_model
from porter.network.nodes import endpoint_names
from porter.parity.candidates.own import ported_model, unrounded
from porter.parity.check import Check, check_sample
from porter.parity.demo import random_variables
from porter.parity.samples import noise, photos, structured
from porter.parity.verify import Against, open_check, verify
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

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
        reference = options.pop("reference", "auto")
        check = open_check(source, None, PortOptions(**options), Against(reference))
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


WIDTHS = {"classes 1": (1, 1.0), "classes 2": (2, 1.0), "classes 5000": (5000, 1.0)}
WIDTHS |= {f"width {width}": (11, width) for width in (0.35, 0.5, 1.4, 2.0)}
ODD = ("dead channels", "huge channels", "means of 1e4 sigma")
FORM_SIZES = [(48, 48), (33, 1), (2, 3), (1, 1)]


def odd_networks(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> mapping and checkpoint of a network of three blocks."""
    found = {}
    for name, (classes, width) in [*WIDTHS.items(), *((name, (11, 1.0)) for name in ODD)]:
        at = folder / name.replace(" ", "_")
        at.mkdir()
        mapping = at / "three.yaml"
        mapping.write_text(MAPPING.replace("network:\n", f"network:\n  multiplier: {width}\n"))
        values = random_variables(load_mapping(mapping), classes)
        for variable, array in values.items():
            if name == "dead channels" and variable.endswith(("gamma", "beta")):
                array[::3] = 0
            if name == "huge channels" and variable == "MobilenetV3/Conv/BatchNorm/gamma":
                array[::3] *= 1e4  # of one norm: of all, TensorFlow's own float32 overflows
            if name == "means of 1e4 sigma" and variable.endswith("moving_mean"):
                array[:] = 1e4 * np.sqrt(values[variable.replace("mean", "variance")])
        write_bundle(at / "model-1", values)
        found[name] = mapping, at / "model-1"
    return found


def forms_of(mapping: Path, source: Path, folder: Path) -> list[tuple[str, dict]]:
    """Every form of a right port: what to verify, and how."""
    found: list[tuple[str, dict]] = [("", {"size": size}) for size in FORM_SIZES]
    for name, options in (("timm", {}), ("folded", {"fold_bn": True}), ("slim", {"layout": "slim"})):
        path, _ = convert(source, folder / f"{name}.pth", mapping=mapping, **options)
        found += [(str(path), {"size": size}) for size in FORM_SIZES]
    path = folder / "timm.pth"
    found += [(str(path), {"deployed": True, "size": size}) for size in FORM_SIZES]
    opened = open_model(path, PortOptions(mapping=mapping))
    for suffix in GRAPH_SUFFIXES:
        file = folder / f"port{suffix}"
        file.write_bytes(export_bytes(suffix, opened.whole.network, load_artifact(path), (48, 48)))
        found.append((str(file), {"size": (48, 48)}))
    batch = torch.zeros(2, 3, 48, 48)
    program = torch.export.export(opened.whole, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "port.pt2")
    found.append((str(folder / "port.pt2"), {"size": (48, 48)}))
    os.environ.update(VARIANT="three_blocks", SOURCE=str(source), MAPPING=str(mapping))
    modules = [("ports.py:plain", size) for size in FORM_SIZES]
    modules += [("functional_port.py:logits", size) for size in FORM_SIZES]
    modules += [("functional_port.py:exported_48", (48, 48)), ("functional_port.py:scripted_48", (48, 48))]
    return found + [(str(ROOT / "tests" / name), {"size": size}) for name, size in modules]


def forms() -> int:
    """Print a row a network: how many verdicts on its forms, how close to the limits, how many alarms."""
    print("| network of three blocks | verdicts | comparisons | closest | alarms |")
    print("|---|---|---|---|---|")
    total = 0
    with tempfile.TemporaryDirectory() as place:
        for name, (mapping, source) in odd_networks(Path(place)).items():
            verdicts = []
            for port, options in forms_of(mapping, source, source.parent):
                size, deployed = options["size"], options.get("deployed", False)
                verdict = verify(
                    source, port or None, mapping=mapping, reference="tf.nn", deployed=deployed, sizes=[size]
                )
                verdicts.append(verdict)
                if not verdict.passed:
                    print(f"{name}, {port} {options}: {verdict.sentence()}", file=sys.stderr)
            rows = [row for verdict in verdicts for row in verdict.rows]
            failed = sum(not verdict.passed for verdict in verdicts)
            total += failed
            furthest = max(rows, key=lambda row: row.excess)
            cells = (
                name,
                len(verdicts),
                len(rows),
                f"{furthest.excess:.2f} of the limit ({furthest.endpoint})",
                failed,
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\n{total} false alarms")
    return 1 if total else 0


def returned() -> int:
    """Print a row a port that returns something else: what the verdict says of it."""
    print("| what is returned | the verdict |")
    print("|---|---|")
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        three = write_three_blocks(Path(place))
        os.environ.update(VARIANT=three.variant, SOURCE=str(three.source), MAPPING=str(three.mapping))
        for name in functional_port.WRONG:
            port = f"{functional_port.__file__}:{name}"
            verdict = verify(three.source, port, mapping=three.mapping, reference=str(three.recorded))
            missed += verdict.passed
            print(f"| {name} | {verdict.sentence()} |", flush=True)
    print(f"\n{missed} missed")
    return 1 if missed else 0


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["alarms", "faults", "forms", "returned"])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    arguments = parser.parse_args()
    if arguments.what in ("forms", "returned"):
        return forms() if arguments.what == "forms" else returned()
    shared = arguments.shared.resolve()
    return alarms(shared, arguments.seeds) if arguments.what == "alarms" else injected(shared)


if __name__ == "__main__":
    sys.exit(main())
