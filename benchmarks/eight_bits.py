"""8-bit ports: ``evaluate`` against TensorFlow Lite's interpreter on the authors' file.

.venv/bin/python benchmarks/eight_bits.py [--rounds N] [--results FOLDER]

One thread and one process; the photos of ../shared/real are decoded and prepared by the same code. The programs take
turns.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from timing import RESULTS, SHARED, interleaved, table, write_result

from porter.evaluation.run import Settings, evaluate_classifier
from porter.photos.images import read_image, resized

REAL = SHARED.parent / "real"
SOURCE = REAL / "v3-small_224_1.0_uint8.tflite"
TIMES = 4  # that each photo is seen


def guesses(interpreter: Any, photos: list[Path]) -> list[int]:
    """The interpreter's class of each photo, without the background."""
    [given], [output] = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for path in photos:
        interpreter.set_tensor(given["index"], resized(read_image(path), (224, 224), 0.875, "card")[None])
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(output["index"])[0, 1:].argmax()))
    return found


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = sorted((REAL / "images").iterdir()) * TIMES
    own = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    kinds = {
        "the interpreter, its own kernels": {"experimental_op_resolver_type": own},
        "the interpreter, XNNPACK": {},
    }
    seen: dict[str, list[int]] = {}
    runs = {}
    for name, options in kinds.items():
        interpreter = Interpreter(str(SOURCE), num_threads=1, **options)
        interpreter.allocate_tensors()
        runs[name] = lambda name=name, interpreter=interpreter: seen.update({name: guesses(interpreter, photos)})

    def ours() -> None:
        result = evaluate_classifier(str(SOURCE), images, settings=Settings(workers=0))
        assert result
        seen["mnv3-port evaluate"] = [one.guesses[0] for one in result.seen]

    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        for number, path in enumerate(photos):
            (images / f"{path.name.partition('_')[0]}_{number:04}.JPEG").symlink_to(path.resolve())
        photos = sorted(images.iterdir())
        times = interleaved(runs | {"mnv3-port evaluate": ours}, given.rounds, warm=0)
    first, *_ = kinds
    same = {name: int(np.equal(classes, seen[first]).sum()) for name, classes in seen.items()}
    speeds = {name: len(photos) / one.median for name, one in times.items()}
    rows = [[name, f"{speed:.1f}", f"{speed / speeds[first]:.2f}", str(same[name])] for name, speed in speeds.items()]
    print(f"{len(photos)} photos\n\n{table(['', 'images/s', 'x the first', 'the same top-1'], rows)}")
    write_result("eight_bits", {"images": len(photos), "images_per_second": speeds, "same_top1": same}, given.results)


if __name__ == "__main__":
    main()
