"""Recorded inputs and outputs (``.npz``): a reference that needs no TensorFlow."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from porter.errors import ParityError
from porter.parity.references.reference import Endpoints, Reference, thin
from porter.parity.samples import Sample

OUTPUT = "ep/{}"  # the array of an endpoint
UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, zlib.error)
KEEP = 4096  # values per image of an endpoint, when the file does not say


def record(reference: Reference, images: np.ndarray, names: Sequence[str], keep: int = KEEP) -> bytes:
    """An ``.npz`` of what ``reference`` makes of ``images`` (N, H, W, C): same input, same bytes."""
    found = {OUTPUT.format(name): thin(values, keep) for name, values in reference.run(images, names)}
    file = io.BytesIO()
    np.savez_compressed(file, input=images, keep=np.array(keep), **found)  # type: ignore[arg-type]
    return file.getvalue()


def recorded(path: Path) -> Reference:
    """Read an ``.npz`` with ``input`` (N, H, W, C), ``ep/<endpoint>`` (see ``thin``) and maybe ``keep``.

    Raises ParityError naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if "input" not in file.files or not any(name.startswith(OUTPUT.format("")) for name in file.files):
                raise ParityError(
                    f"{path}: a recorded reference needs the arrays 'input' and 'ep/<endpoint>' (ep/Logits ...); "
                    f"found {sorted(file.files)[:5]}"
                )
            images = file["input"]
            keep = int(file["keep"]) if "keep" in file.files else KEEP
    except UNREADABLE as error:
        raise ParityError(f"{path}: not a readable .npz reference ({error})") from error

    def run(given: np.ndarray, names: Sequence[str]) -> Endpoints:
        if given is not images:
            raise ParityError(f"{path}: a recorded reference runs its own inputs only")
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                if OUTPUT.format(name) in file.files:
                    try:
                        values = file[OUTPUT.format(name)]
                    except UNREADABLE as error:
                        raise ParityError(f"{path}: {name}: not readable ({error})") from error
                    yield name, values

    sample = Sample(f"recorded {images.shape[1]}x{images.shape[2]}", images)
    return Reference(f"recorded ({path.name})", run, size=images.shape[1:3], samples=(sample,), keep=keep)
