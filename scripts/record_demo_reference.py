"""Record what TensorFlow computes from the demo checkpoint: porter/parity/demo_reference.npz.

Run after a change to demo_variables: .venv/bin/python scripts/record_demo_reference.py
"""

import tempfile
from pathlib import Path

import numpy as np

from porter.conversion import plan_port
from porter.demo import DEFAULT_VARIANT, RECORDED, demo_variables
from porter.parity.references.reference import thin
from porter.parity.references.tf_nn import tf_nn
from porter.parity.samples import noise
from porter.writers.bundle import write_bundle

KEEP = 1024  # values per endpoint and image; more than there are classes, so logits stay whole
SIZE = (75, 64)  # odd and not square: padding differs on each side

with tempfile.TemporaryDirectory() as folder:
    prefix = Path(folder) / "model-0"
    write_bundle(prefix, demo_variables(DEFAULT_VARIANT))
    port = plan_port(prefix, DEFAULT_VARIANT)
    images = noise(SIZE, seed=0, count=1).images
    found = tf_nn(port.checkpoint, port.network, port.mapping.scope, "float32").run(images)
recorded = {f"ep/{name}": thin(values, KEEP) for name, values in found.items()}
np.savez_compressed(RECORDED, input=images, keep=KEEP, **recorded)
print(f"{RECORDED}: {len(recorded)} endpoints, {RECORDED.stat().st_size} bytes")
