"""Recorded inputs and outputs (``.npz``): a reference that needs no TensorFlow."""

from __future__ import annotations

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import cast, get_args

import numpy as np

from porter.errors import ParityError
from porter.parity.references.reference import Endpoints, Noise, Precision, Reference, Values, thin
from porter.parity.samples import Sample
from porter.sources.bounds import allowance, check_zip

VALUES = "ep/{}"  # the values of an endpoint
NOISE = "noise/{}"  # the reference's own float32 error there: root mean square and largest
# What zipfile and numpy raise for damaged bytes
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(SyntaxError, TokenError, AttributeError, ArithmeticError),  # of numpy's headers, which are Python literals
)
KEEP = 4096  # values per image and endpoint, unless the file says


def record(reference: Reference, images: np.ndarray, names: Sequence[str], keep: int = KEEP) -> bytes:
    """An ``.npz`` of the outputs of ``reference`` for ``images`` (N, H, W, C): same input, same bytes."""
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
    """Read what ``record`` writes: ``input`` (N, H, W, C), ``ep/<endpoint>`` (see ``thin``), ``noise/<endpoint>``.

    Older files hold float32 values, no noise and no precision. Raises ParityError that names the file.
    """
    with _open_arrays(path) as (held, read):
        outputs = [name for name in held if name.startswith(VALUES.format(""))]
        if "input" not in held or not outputs:
            raise ParityError(
                f"{path}: a recorded reference needs the arrays 'input' and 'ep/<endpoint>' (ep/Logits ...); "
                f"found {sorted(held)[:5]}"
            )
        images = read("input")
        if images.shape[3:] != (3,) or not _numbers(images) or not images.size:
            raise ParityError(f"{path}: 'input' must be images (N, H, W, 3), is {images.shape} of {images.dtype}")
        keep = int(read("keep")) if "keep" in held else KEEP
        precision = str(read("precision")) if "precision" in held else "float32"
        if precision not in get_args(Precision):
            raise ParityError(f"{path}: recorded in the unknown precision {precision!r}")

    def run(given: np.ndarray, names: Sequence[str]) -> Endpoints:
        if given is not images:
            raise ParityError(f"{path}: a recorded reference runs its own inputs only")
        with _open_arrays(path) as (held, read):
            for name in names:
                if VALUES.format(name) in held:
                    values, noise = read(VALUES.format(name)), None
                    if not _numbers(values) or values.ndim < 2 or values.shape[:1] != images.shape[:1]:
                        raise ParityError(
                            f"{path}: {name}: {values.shape} of {values.dtype} for {len(images)} images; damaged"
                        )
                    if NOISE.format(name) in held:
                        noise = Noise(*read(NOISE.format(name)).astype(float).tolist())
                        if not 0 <= noise.rms <= noise.largest < math.inf:
                            raise ParityError(f"{path}: {name}: recorded with the impossible error {noise}")
                    yield name, Values(values, noise)

    sample = Sample(f"recorded {images.shape[1]}x{images.shape[2]}", images)
    return Reference(
        f"recorded ({path.name})",
        run,
        precision=cast(Precision, precision),
        size=images.shape[1:3],
        samples=(sample,),
        keep=keep,
    )


def _numbers(values: np.ndarray) -> bool:
    """Whether ``values`` are real numbers of up to 64 bits."""
    return values.dtype.kind in "fiu" and values.dtype.itemsize <= 8


@contextmanager
def _open_arrays(path: Path) -> Iterator[tuple[list[str], Callable[[str], np.ndarray]]]:
    """The names of the arrays of an ``.npz``, and their reader, limited in memory. (``np.load`` trusts the headers.)"""
    try:
        check_zip(path)
        most = allowance(path.stat().st_size) // 2  # as bytes, then as values
        with zipfile.ZipFile(path) as archive:

            def read(name: str) -> np.ndarray:
                with archive.open(f"{name}.npy") as member:
                    data = member.read(most + 1)
                if len(data) > most:
                    raise ValueError(f"{name} unpacks to more than {most} bytes")
                return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)

            yield [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")], read
    except UNREADABLE as error:
        raise ParityError(f"{path}: not a readable .npz reference ({error})") from error
