"""Compare the authors' 8-bit classifier with its port, with and without fake quantisation, on real photos.

.venv/bin/python scripts/eight_bit_photos.py [--real ../shared/real]

Prints in how many layers all levels are equal, and how often the highest class is the interpreter's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import porter
from porter.models.build import capture
from porter.parity.references.interpreter import interpreter
from porter.parity.samples import photos
from porter.port import plan_port

parser = argparse.ArgumentParser()
parser.add_argument("--real", type=Path, default=Path(__file__).parents[2] / "shared" / "real")
folder = parser.parse_args().real
source = folder / "v3-small_224_1.0_uint8.tflite"
port = plan_port(source)
reference = interpreter(port)
images = np.concatenate([s.images for s in photos(folder / "images", (224, 224), port.mapping.input, limit=1000)])
quantised, plain = (
    porter.create_model("small_100", source, keep_background=True, fake_quant=on) for on in (True, False)
)
agreeing = {"fake quantisation": 0, "dequantised": 0}
equal: dict[str, bool] = {}
for start in range(0, len(images), 25):
    batch = images[start : start + 25]
    inputs = torch.from_numpy(reference.prepare(batch)).permute(0, 3, 1, 2)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad(), capture(quantised, found.__setitem__):
        quantised(inputs)
    expected = dict(reference.run(batch, list(found)))
    for name, (theirs, _) in expected.items():
        ours = found[name].permute(0, 2, 3, 1) if found[name].ndim == 4 else found[name]
        close = np.abs(ours.numpy().reshape(theirs.shape) - theirs).max() <= 1e-6 * np.abs(theirs).max()
        equal[name] = equal.get(name, True) and bool(close)
    top = expected["Logits"].values.argmax(1)
    agreeing["fake quantisation"] += int((found["Logits"].argmax(1).numpy() == top).sum())
    with torch.no_grad():
        agreeing["dequantised"] += int((plain(inputs).argmax(1).numpy() == top).sum())
print(f"{len(images)} photos; {sum(equal.values())} of {len(equal)} layers equal level for level on all of them")
for name, count in agreeing.items():
    print(f"top-1 as the interpreter's, {name}: {count} of {len(images)}, {count / len(images):.1%}")
