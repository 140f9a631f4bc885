"""An artifact: a state dict with the metadata beside it, in memory and as a ``.pth`` or ``.safetensors`` file.

A file is read once, as numpy arrays. Only a ``.pth`` takes torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from porter.artifacts.metadata import KEY, Metadata, decode, encode
from porter.atomic import atomic_write
from porter.errors import ArtifactError, CheckpointError, PorterNote
from porter.mapping.gate import GATE_IN_16_BITS
from porter.mapping.options import PathLike
from porter.network.network import GATE_ENTRY, TIMM_GATE
from porter.network.nodes import is_weight
from porter.network.spec import MOST
from porter.sources.bounds import Budget, allowance, check_zip
from porter.sources.checkpoint import sha256
from porter.sources.content import TORCHSCRIPT, is_torchscript
from porter.sources.dtypes import as_decimal
from porter.sources.remote import exists, is_url, mirror

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


ARTIFACT_SUFFIXES = (".pth", ".pt", ".safetensors")
# Files of a release
CHECKSUMS, CARD, CONFIG = "SHA256SUMS", "README.md", "config.json"
WEIGHTS, MAPPING = "model.safetensors", "mapping.yaml"
PARITY, REPORT, REFERENCE, EVALUATION = "parity.json", "parity.html", "reference.npz", "evaluation.json"


@dataclass(frozen=True)
class ArtifactFile:
    """A local artifact: ``path`` of the file, and what was ``given``. It is read once, and hashed once.

    ``mapping`` is the mapping file of a release whose variant is no built-in one. ``copy`` is the temporary folder of
    what came from a URL, and goes with this value.
    """

    path: Path
    given: str
    mapping: Path | None = None
    copy: tempfile.TemporaryDirectory[str] | None = None

    @cached_property
    def artifact(self) -> Artifact:
        """What is in it. Raises ArtifactError."""
        if not self.path.is_file():
            raise ArtifactError(f"{self.path}: no such file")
        try:
            return (_load_safetensors if self.path.suffix == ".safetensors" else _load_pickle)(self.path)
        except ArtifactError as error:
            raise error if self.copy is None else error.renamed(str(self.path), self.given) from error

    @cached_property
    def digests(self) -> dict[str, str]:
        """The file's name -> its SHA-256."""
        return {self.path.name: sha256(self.path)}


def find_artifact(source: PathLike) -> ArtifactFile | None:
    """The artifact that ``source`` names; None where it names a TensorFlow source. Raises CheckpointError for URLs."""
    given = os.fspath(source)
    if is_url(given):
        return _remote(given)
    path = Path(given)
    if path.is_dir() and (path / WEIGHTS).is_file():
        own = path / MAPPING
        return ArtifactFile(path / WEIGHTS, given, own if own.is_file() else None)
    return ArtifactFile(path, given) if path.suffix in ARTIFACT_SUFFIXES else None


def _remote(url: str) -> ArtifactFile | None:
    place, budget = url.split("?")[0].split("#")[0].rstrip("/"), Budget(url)
    if place.endswith(ARTIFACT_SUFFIXES):
        found = mirror(url, budget)
        return ArtifactFile(found.path, url, copy=found.folder)
    if url.startswith("http") or PurePosixPath(place).suffix:  # a web server has no folders
        return None
    weights = f"{place}/{WEIGHTS}"
    try:
        if not exists(weights):
            return None
    except CheckpointError as error:
        raise error.renamed(weights, url) from error
    found, mapping = mirror(weights, budget), None
    if exists(f"{place}/{MAPPING}"):
        own = mirror(f"{place}/{MAPPING}", budget)
        mapping = own.path.rename(found.path.with_name(MAPPING))
    return ArtifactFile(found.path, url, mapping, found.folder)


# Where training scripts keep weights, averages first (timm's, torchvision's, Lightning's); and what wrappers
# (DistributedDataParallel, torch.compile) put before every name
NESTED = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
WITHOUT_NUMPY = ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2")


class Artifact(NamedTuple):
    """Entries of a state dict -> arrays; ``metadata`` is None where another tool wrote the file."""

    arrays: dict[str, np.ndarray]
    metadata: Metadata | None

    @property
    def gate(self) -> float:
        """The squeeze-excite gate that the weights are made for. Raises ArtifactError as ``gate_of``."""
        return gate_of(self.arrays, self.metadata)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors of the same memory."""
        import torch

        return {name: torch.from_numpy(values) for name, values in self.arrays.items()}


def load_artifact(source: PathLike | ArtifactFile) -> Artifact:
    """Read a ``.pth`` (with ``weights_only=True``) or ``.safetensors``, a release's folder, or the URL of either.

    Of a training script's checkpoint, the weights in it; a PorterNote warns of that. Raises ArtifactError or
    CheckpointError.
    """
    file = source if isinstance(source, ArtifactFile) else find_artifact(source)
    if file is None:
        raise ArtifactError(f"{source}: no artifact ({', '.join(ARTIFACT_SUFFIXES)}, or a release's folder)")
    return file.artifact._replace(arrays=dict(file.artifact.arrays))


def save_artifact(path: Path, artifact: Artifact, force: bool = False) -> None:
    """Write ``artifact``, which has metadata, in the format of the suffix of ``path``; same input, same bytes.

    The ``.pth`` is a plain state dict (the metadata rides on its ``_metadata`` attribute, which
    ``load_state_dict`` carries along and does not mind). Raises ArtifactError or PorterError, and leaves no half file.
    """
    assert artifact.metadata is not None
    if path.suffix not in ARTIFACT_SUFFIXES:
        raise ArtifactError(f"{path}: the output's name must end in one of {', '.join(ARTIFACT_SUFFIXES)}")
    if path.suffix == ".safetensors":
        _save_safetensors(path, artifact.arrays, artifact.metadata, force)
        return
    import torch

    state_dict: OrderedDict[str, Tensor] = OrderedDict(artifact.tensors)
    state_dict._metadata = {KEY: {"json": encode(artifact.metadata)}}  # type: ignore[attr-defined]
    with atomic_write(path, force) as file:
        try:
            torch.save(state_dict, file)
        except RuntimeError as error:  # PyTorch's zip writer hides the OSError of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _save_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Metadata, force: bool) -> None:
    """The format of https://github.com/huggingface/safetensors, as its library writes it, but for two things.

    The library has the metadata's keys in random order, and copies the weights twice.
    """
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt", KEY: encode(metadata)}}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))  # so that all are aligned
    end = 0
    for name, values in ordered:
        kind = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}[values.dtype.kind]
        begin, end = end, end + values.nbytes
        dtype = kind if kind == "BOOL" else f"{kind}{8 * values.itemsize}"
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)
    with atomic_write(path, force) as file:
        file.write(len(padded).to_bytes(8, "little") + padded)
        for _, values in ordered:
            file.write(np.asarray(values, order="C").reshape(-1).view(np.uint8).data)


def _load_safetensors(path: Path) -> Artifact:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:  # of types that numpy lacks
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error
    for name, values in arrays.items():
        if values.dtype.kind == "c":
            raise ArtifactError(f"{path}: tensor {name}: is complex, not an ordinary dense tensor")
        if values.dtype.kind not in "fiub":  # bfloat16 and the 8-bit floats, which numpy knows by ml_dtypes
            arrays[name] = values.astype(np.float32)
    metadata = decode(text, str(path)) if text is not None else None
    gate_of(arrays, metadata, str(path))
    return Artifact(arrays, metadata)


def _load_pickle(path: Path) -> Artifact:
    import torch
    from torch import Tensor

    _check_packing(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler fails in every way there is
        raise ArtifactError(f"{path}: {_unreadable(error)}") from error
    loaded, attached = _unwrap(path, loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ArtifactError(f"{path}: holds no state dict (names -> tensors)")
    entry = attached.get(KEY) if isinstance(attached, dict) else None
    text = entry.get("json") if isinstance(entry, dict) else None
    metadata = decode(text, str(path)) if isinstance(text, str) else None
    claimed = sum(value.numel() * max(4, value.element_size()) for value in loaded.values())
    if claimed > allowance(path.stat().st_size):  # a tensor of strides 0 repeats one value without end
        raise ArtifactError(
            f"{path}: its tensors have {claimed:,} bytes, the file {path.stat().st_size:,}; save contiguous copies"
        )
    arrays = {name: _array(path, name, value) for name, value in loaded.items()}
    gate_of(arrays, metadata, str(path))
    return Artifact(arrays, metadata)


def _check_packing(path: Path) -> None:
    """Raise ArtifactError where the zip ``path`` is a program, or unpacks to more than its bytes.

    (torch.save does not compress.)
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {_unreadable(error)}") from error
    if is_torchscript(member.filename for member in members):
        raise ArtifactError(f"{path}: {TORCHSCRIPT}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size:
        raise ArtifactError(
            f"{path}: unpacks to {unpacked:,} bytes, the file has {path.stat().st_size:,}; save it uncompressed, as "
            "torch.save does"
        )


def _unreadable(error: Exception) -> str:
    """Why torch did not load a file, in one line."""
    said = str(error).rpartition("WeightsUnpickler error: ")[2]
    pickled = re.search(r"Unsupported global: GLOBAL ([\w.]+)", said)
    if pickled:
        return (
            f"holds Python objects ({pickled[1]}), and loading them would run code; where it was written: "
            "torch.save(model.state_dict(), ...)"
        )
    reason = said.splitlines()[0] if said else type(error).__name__
    return f"not a readable PyTorch weights file ({reason})"


def _unwrap(path: Path, loaded: Any) -> tuple[Any, Any]:
    """The state dict in what a training script saved, its names without the prefixes of wrappers; and its metadata."""
    notes = []
    while isinstance(loaded, dict) and (entry := next((k for k in NESTED if isinstance(loaded.get(k), dict)), None)):
        notes.append(f"the weights in its entry {entry}")
        loaded = loaded[entry]
    attached = getattr(loaded, "_metadata", {})
    if isinstance(loaded, dict):
        while loaded and (
            prefix := next((p for p in PREFIXES if all(isinstance(k, str) and k.startswith(p) for k in loaded)), None)
        ):
            notes.append(f"names without {prefix}")
            loaded = {name.removeprefix(prefix): value for name, value in loaded.items()}
    if notes:
        warnings.warn(f"{path}: a training checkpoint; taken are {', '.join(notes)}", PorterNote, stacklevel=2)
    return loaded, attached


def _array(path: Path, name: str, value: Tensor) -> np.ndarray:
    """``value`` as an array, of float32 where numpy lacks its dtype. Raises ArtifactError."""
    value = value.detach()
    if str(value.layout) != "torch.strided" or value.is_meta or value.is_quantized or value.is_complex():
        kind = "meta" if value.is_meta else "quantized" if value.is_quantized else str(value.layout)
        raise ArtifactError(f"{path}: tensor {name}: is {kind}, not an ordinary dense tensor")
    return (value.float() if str(value.dtype) in WITHOUT_NUMPY else value).numpy()


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32C of the weights in a state dict, with their names, types and shapes: shows that they were changed."""
    import crc32c
    import numpy as np

    found = 0
    for name in sorted(filter(is_weight, arrays)):
        values = np.asarray(arrays[name], order="C")
        found = crc32c.crc32c(f"{name} {values.dtype.str} {values.shape};".encode(), found)
        found = crc32c.crc32c(values.reshape(-1).view(np.uint8).data, found)
    return f"{found:08x}"


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
    # In 16 bits, 1/6 and 0.16667 are the same number; but where there is an entry, the gate is not 1/6
    if metadata and (metadata.gate == TIMM_GATE or not math.isclose(metadata.gate, gate, rel_tol=GATE_IN_16_BITS)):
        raise ArtifactError(f"{source}: entry {GATE_ENTRY}: says {gate:.6g}, its metadata {metadata.gate:.6g}")
    return metadata.gate if metadata else gate
