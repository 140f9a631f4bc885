"""A small real checkpoint of any variant, for trying things without a trained one."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from porter.atomic import make_folder, write_bytes
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.mapping.schema import VariantMapping
from porter.network.network import build_network
from porter.parity.references.choose import RECORDED_NAME
from porter.sources.bundle_writer import write_bundle

DEFAULT_VARIANT = "small_075"
STEP = 1000
# What TensorFlow computes from the default variant's demo weights; scripts/record_demo_reference.py made it.
RECORDED = Path(__file__).with_name("demo_reference.npz")


def demo_variables(variant: str, classes: int = 1001, seed: int = 0) -> dict[str, np.ndarray]:
    """Untrained variables of ``variant``; see ``random_variables``."""
    return random_variables(load_variant(variant), classes, seed)


def random_variables(mapping: VariantMapping, classes: int = 1001, seed: int = 0) -> dict[str, np.ndarray]:
    """Untrained float32 variables of a network under slim's names, from ``seed``; activations keep their size."""
    # NumPy never changes RandomState's stream, so the recorded reference stays valid
    random = np.random.RandomState(zlib.crc32(f"{mapping.variant} {classes} {seed}".encode()))
    variables: dict[str, np.ndarray] = {"global_step": np.array(STEP, np.int64)}
    for want in expected_variables(mapping, build_network(mapping), classes):
        kind = want.source.rsplit("/", 1)[-1]
        if kind in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, want.shape)
        elif kind in ("beta", "biases", "moving_mean"):
            values = random.normal(0, 0.2, want.shape)
        else:  # He's gain of 2: only these layers follow a ReLU, which halves the variance
            fan_in = np.prod(want.shape[:2] if want.axes == "depthwise" else want.shape[:3])
            gain = 2 if "/depthwise/" in want.source or "/project/" in want.source else 1
            values = random.normal(0, np.sqrt(gain / fan_in), want.shape)
        variables[want.source] = values.astype(np.float32)
    return variables


def write_demo_checkpoint(folder: Path, variant: str = DEFAULT_VARIANT) -> Path:
    """Write the demo checkpoint of ``variant`` below ``folder``, laid out like a released tarball's folder.

    The default variant gets a recorded reference beside it, so that it can be verified without TensorFlow. Returns the
    folder to convert. Raises PorterError.
    """
    ema = folder / f"{variant}_demo" / "ema"
    make_folder(ema)
    write_bundle(ema / f"model-{STEP}", demo_variables(variant), force=True)
    if variant == DEFAULT_VARIANT:
        write_bytes(ema.parent / RECORDED_NAME, RECORDED.read_bytes(), force=True)
    return ema.parent
