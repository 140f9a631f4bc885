"""A small network of the user's own: three blocks with all that MobileNetV3 has in one, and what TensorFlow makes of it.

A diagnosis runs the network with mistakes some hundred times, and a first difference is as first in three blocks as in
fifteen.
"""

from pathlib import Path
from typing import NamedTuple

from porter.parity.demo import random_variables
from porter.sources.bundle_writer import write_bundle

VARIANT = "three_blocks"
SIZE = (51, 40)  # odd and not square: padding differs on each side; nor the size it was trained on
MAPPING = """
base: small_100.yaml
variant: three_blocks
timm: null
keras: null
url: null
training: null
input: {size: 48}
network:
  blocks:
    - {stage: 0, kernel: 3, expansion: 1, out: 16, se: true,  activation: relu,       stride: 2}
    - {stage: 1, kernel: 5, expansion: 4, out: 24, se: true,  activation: hard_swish, stride: 2}
    - {stage: 1, kernel: 3, expansion: 3, out: 24, se: false, activation: hard_swish, stride: 1}
  last: {out: 72, activation: hard_swish}
  head: {out: 96, activation: hard_swish}
"""


class Subject(NamedTuple):
    """A checkpoint to port: its mapping where it has one of its own, and what TensorFlow computed from it."""

    variant: str
    source: Path
    mapping: Path | None
    recorded: Path
    side: int  # of the images that it was trained on

    @property
    def options(self) -> tuple:
        """Of ``mnv3-port verify``: this network, and no TensorFlow."""
        return (*self.own, "--reference", self.recorded)

    @property
    def own(self) -> tuple:
        """Of any command: this network."""
        return ("--mapping", self.mapping) if self.mapping else ()


def write_three_blocks(folder: Path) -> Subject:
    """Write mapping, checkpoint and TensorFlow's outputs, as scripts/record_demo_reference.py records the demo's."""
    from porter.mapping.files import load_mapping
    from porter.mapping.options import PortOptions
    from porter.network.nodes import endpoint_names
    from porter.parity.references.recorded import record
    from porter.parity.references.tf_nn import tf_nn
    from porter.parity.samples import noise
    from porter.port import plan_port

    mapping, source, recorded = folder / "three.yaml", folder / "model-3", folder / "recorded.npz"
    mapping.write_text(MAPPING)
    write_bundle(source, random_variables(load_mapping(mapping)))
    port = plan_port(source, PortOptions(mapping=mapping))
    names = endpoint_names(port.network, port.classes)
    recorded.write_bytes(record(tf_nn(port), noise(SIZE, seed=0).images, names, 4096))
    return Subject(VARIANT, source, mapping, recorded, 48)
