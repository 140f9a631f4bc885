"""Recorded inputs and outputs (``.npz``): a reference that needs no TensorFlow."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from porter.errors import ParityError
from porter.parity.references.reference import Endpoints, Reference
from porter.parity.samples import Sample

KEEP = 4096  # values per image of an endpoint, when the file does not say


def recorded(path: Path) -> Reference:
    """Read an ``.npz`` with ``input`` (N, H, W, C), ``ep/<endpoint>`` (see ``thin``) and maybe ``keep``.

    Raises ParityError naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ParityError(f"{path}: not a readable .npz reference ({error})") from error
    endpoints = {name.removeprefix("ep/"): values for name, values in arrays.items() if name.startswith("ep/")}
    if "input" not in arrays or "Logits" not in endpoints:
        raise ParityError(
            f"{path}: a recorded reference needs the arrays 'input' and 'ep/Logits'; found {sorted(arrays)[:5]}"
        )
    images = arrays["input"]

    def run(given: np.ndarray) -> Endpoints:
        if given is not images:
            raise ParityError(f"{path}: a recorded reference runs its own inputs only")
        return endpoints

    keep = int(arrays.get("keep", KEEP))
    sample = Sample(f"recorded {images.shape[1]}x{images.shape[2]}", images)
    return Reference(f"recorded ({path.name})", run, size=images.shape[1:3], samples=(sample,), keep=keep)
