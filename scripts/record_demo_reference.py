"""Record what TensorFlow computes from the demo checkpoint: porter/parity/demo_reference.npz.

Run this after a change to demo_variables: .venv/bin/python scripts/record_demo_reference.py
"""

import tempfile
from pathlib import Path

from porter.mapping.options import PortOptions
from porter.network.nodes import endpoint_names
from porter.parity.demo import DEFAULT_VARIANT, RECORDED, demo_variables
from porter.parity.references.recorded import record
from porter.parity.references.tf_nn import tf_nn
from porter.parity.samples import noise
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

KEEP = 1024  # values per endpoint and image; more than there are classes, so logits stay whole
SIZE = (75, 64)  # odd and not square: padding differs on each side

with tempfile.TemporaryDirectory() as folder:
    prefix = Path(folder) / "model-0"
    write_bundle(prefix, demo_variables(DEFAULT_VARIANT))
    port = plan_port(prefix, PortOptions(DEFAULT_VARIANT))
    images = noise(SIZE, seed=0, count=1).images
    names = endpoint_names(port.network, port.classes)
    RECORDED.write_bytes(record(tf_nn(port), images, names, KEEP))
print(f"{RECORDED}: {len(names)} endpoints, {RECORDED.stat().st_size} bytes")
