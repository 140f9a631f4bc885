"""Recorded inputs and outputs (``.npz``): a reference that needs no TensorFlow."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np

from porter.errors import ParityError
from porter.parity.references.reference import Endpoints, Noise, Precision, Reference, Values, thin
from porter.parity.samples import Sample

VALUES = "ep/{}"  # the values of an endpoint
NOISE = "noise/{}"  # the reference's own float32 error there: root mean square and largest
UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, zlib.error)
KEEP = 4096  # values per image of an endpoint, when the file does not say


def record(reference: Reference, images: np.ndarray, names: Sequence[str], keep: int = KEEP) -> bytes:
    """An ``.npz`` of what ``reference`` makes of ``images`` (N, H, W, C): same input, same bytes."""
    found: dict[str, np.ndarray] = {}
    for name, (values, noise) in reference.run(images, names):
        found[VALUES.format(name)] = values if reference.keep else thin(values, keep)
        if noise is not None:
            found[NOISE.format(name)] = np.array(noise)
    file = io.BytesIO()
    about = {"input": reference.prepare(images), "keep": np.array(keep), "precision": np.array(reference.precision)}
    np.savez_compressed(file, **about, **found)  # type: ignore[arg-type]
    return file.getvalue()


def recorded(path: Path) -> Reference:
    """Read what ``record`` makes: ``input`` (N, H, W, C), ``ep/<endpoint>`` (see ``thin``), ``noise/<endpoint>``.

    Older ones hold float32 values and no noise, and say nothing of precision. Raises ParityError naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            outputs = [name for name in file.files if name.startswith(VALUES.format(""))]
            if "input" not in file.files or not outputs:
                raise ParityError(
                    f"{path}: a recorded reference needs the arrays 'input' and 'ep/<endpoint>' (ep/Logits ...); "
                    f"found {sorted(file.files)[:5]}"
                )
            images = file["input"]
            keep = int(file["keep"]) if "keep" in file.files else KEEP
            precision = str(file["precision"]) if "precision" in file.files else "float32"
            if precision not in get_args(Precision):
                raise ParityError(f"{path}: recorded in the unknown precision {precision!r}")
    except UNREADABLE as error:
        raise ParityError(f"{path}: not a readable .npz reference ({error})") from error

    def run(given: np.ndarray, names: Sequence[str]) -> Endpoints:
        if given is not images:
            raise ParityError(f"{path}: a recorded reference runs its own inputs only")
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                if VALUES.format(name) in file.files:
                    try:
                        values = file[VALUES.format(name)]
                        noise = file[NOISE.format(name)] if NOISE.format(name) in file.files else None
                    except UNREADABLE as error:
                        raise ParityError(f"{path}: {name}: not readable ({error})") from error
                    yield name, Values(values, None if noise is None else Noise(float(noise[0]), float(noise[1])))

    sample = Sample(f"recorded {images.shape[1]}x{images.shape[2]}", images)
    return Reference(
        f"recorded ({path.name})",
        run,
        precision=cast(Precision, precision),
        size=images.shape[1:3],
        samples=(sample,),
        keep=keep,
    )
