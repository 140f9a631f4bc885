"""``.safetensors`` files as numpy arrays: written and read without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from porter.architecture.network import GATE_ENTRY, MOST, TIMM_GATE
from porter.artifacts.locate import SUFFIXES, ArtifactFile, find_artifact
from porter.artifacts.metadata import KEY, Metadata, decode, encode
from porter.atomic import atomic_write
from porter.errors import ArtifactError
from porter.mapping.gate import GATE_IN_16_BITS, as_decimal
from porter.mapping.options import PathLike

if TYPE_CHECKING:
    import numpy as np


class Arrays(NamedTuple):
    """A state dict as numpy arrays; ``metadata`` is None where another tool wrote the file."""

    arrays: dict[str, np.ndarray]
    metadata: Metadata | None

    @property
    def gate(self) -> float:
        """The squeeze-excite gate that the weights are made for. Raises ArtifactError as ``gate_of``."""
        return gate_of(self.arrays, self.metadata)


def check_suffix(path: Path) -> None:
    """Raise ArtifactError unless ``path`` names one of the formats."""
    if path.suffix not in SUFFIXES:
        raise ArtifactError(f"{path}: the output's name must end in one of {', '.join(SUFFIXES)}")


def load_arrays(source: PathLike | ArtifactFile) -> Arrays:
    """Read an artifact as arrays; only a ``.pth`` takes torch. Raises as ``porter.artifacts.files.load_artifact``."""
    file = existing(source)
    if file.path.suffix != ".safetensors":
        from porter.artifacts.files import load_artifact

        loaded = load_artifact(file)
        return loaded.as_arrays
    try:
        return _read(file.path)
    except ArtifactError as error:
        raise error if file.copy is None else error.renamed(str(file.path), file.given) from error


def existing(source: PathLike | ArtifactFile) -> ArtifactFile:
    """The file that ``source`` names. Raises ArtifactError where there is none, or it is no artifact."""
    file = source if isinstance(source, ArtifactFile) else find_artifact(source)
    if file is None:
        raise ArtifactError(f"{source}: no artifact ({', '.join(SUFFIXES)}, or a release's folder)")
    if not file.path.is_file():
        raise ArtifactError(f"{file.path}: no such file")
    return file


def save_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: Metadata, force: bool = False) -> None:
    """Write a ``.safetensors``, atomically; same input, same bytes. Raises PorterError."""
    from safetensors.numpy import save

    data = save(arrays, {"format": "pt", KEY: encode(metadata)})
    # The library writes the metadata keys in random order; sorted, the same input gives the same bytes.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)
    with atomic_write(path, force) as file:
        file.write(len(padded).to_bytes(8, "little") + padded)
        file.write(memoryview(data)[8 + size :])  # without another copy of the weights


def _read(path: Path) -> Arrays:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:  # of types that numpy has not
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error
    for name, values in arrays.items():
        if values.dtype.kind == "c":
            raise ArtifactError(f"{path}: tensor {name}: is complex, not an ordinary dense tensor")
        if values.dtype.kind not in "fiub":  # bfloat16 and the 8-bit floats, which numpy knows by ml_dtypes
            arrays[name] = values.astype(np.float32)
    metadata = decode(text, str(path)) if text is not None else None
    gate_of(arrays, metadata, str(path))
    return Arrays(arrays, metadata)


def gate_of(entries: Mapping[str, Any], metadata: Metadata | None, source: str = "state dict") -> float:
    """The gate that a state dict's weights are made for: what an entry says, or the metadata, or else 1/6.

    Raises ArtifactError naming ``source`` where the entry is no gate, or the metadata contradicts it.
    """
    entry = entries.get(GATE_ENTRY)
    if entry is None:
        return metadata.gate if metadata else TIMM_GATE
    gate = as_decimal(float(entry)) if tuple(entry.shape) == () else math.nan
    if not 0 < gate <= MOST:
        raise ArtifactError(f"{source}: entry {GATE_ENTRY}: is not one number above 0 and up to {MOST}")
    # 1/6 and 0.16667 are closer than 16 bits can tell, but where there is an entry the gate is not 1/6
    if metadata and (metadata.gate == TIMM_GATE or not math.isclose(metadata.gate, gate, rel_tol=GATE_IN_16_BITS)):
        raise ArtifactError(f"{source}: entry {GATE_ENTRY}: says {gate:.6g}, its metadata {metadata.gate:.6g}")
    return metadata.gate if metadata else gate
