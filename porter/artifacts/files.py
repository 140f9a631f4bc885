"""``.pth`` and ``.safetensors`` files: a plain state dict that any loader takes, and our metadata beside it."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from porter.artifacts.arrays import Arrays, check_suffix, existing, gate_of, load_arrays, save_arrays
from porter.artifacts.locate import ArtifactFile
from porter.artifacts.metadata import KEY, Metadata, decode, encode
from porter.atomic import atomic_write
from porter.errors import ArtifactError, PorterNote
from porter.mapping.options import PathLike

# Where training scripts keep weights, averages first (timm's, torchvision's, Lightning's); and what wrappers
# (DistributedDataParallel, torch.compile) put before every name
NESTED = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
WITHOUT_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class Artifact(NamedTuple):
    """A state dict and what is known of it: ``Arrays`` as tensors."""

    tensors: dict[str, Tensor]
    metadata: Metadata | None

    @property
    def gate(self) -> float:
        """The squeeze-excite gate that the weights are made for. Raises ArtifactError as ``gate_of``."""
        return gate_of(self.tensors, self.metadata)

    @property
    def as_arrays(self) -> Arrays:
        """The same memory for numpy."""
        return Arrays({name: tensor.numpy() for name, tensor in self.tensors.items()}, self.metadata)

    @classmethod
    def of(cls, found: Arrays) -> Artifact:
        """The same memory for torch."""
        return cls({name: torch.from_numpy(values) for name, values in found.arrays.items()}, found.metadata)


def save_artifact(path: Path, tensors: dict[str, Tensor], metadata: Metadata, force: bool = False) -> None:
    """Write ``tensors`` to ``path`` in the format of its suffix, atomically; same input, same bytes.

    The ``.pth`` is a plain state dict (the metadata rides on its ``_metadata`` attribute, which
    ``load_state_dict`` carries along and does not mind). Raises ArtifactError or PorterError.
    """
    check_suffix(path)
    if path.suffix == ".safetensors":
        save_arrays(path, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, metadata, force)
        return
    state_dict: OrderedDict[str, Tensor] = OrderedDict(tensors)
    state_dict._metadata = {KEY: {"json": encode(metadata)}}  # type: ignore[attr-defined]
    with atomic_write(path, force) as file:
        try:
            torch.save(state_dict, file)
        except RuntimeError as error:  # PyTorch's zip writer hides the OSError of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_artifact(source: PathLike | ArtifactFile) -> Artifact:
    """Read a ``.pth`` (with ``weights_only=True``) or ``.safetensors``, a release's folder, or the URL of either.

    Of a training script's checkpoint, the weights in it; a PorterNote warns of that. Raises ArtifactError or
    CheckpointError.
    """
    file = existing(source)
    if file.path.suffix == ".safetensors":
        return Artifact.of(load_arrays(file))
    try:
        return _load_pickle(file.path)
    except ArtifactError as error:
        raise error if file.copy is None else error.renamed(str(file.path), file.given) from error


def _load_pickle(path: Path) -> Artifact:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler fails in every way there is
        raise ArtifactError(f"{path}: {_unreadable(error)}") from error
    attached = getattr(loaded, "_metadata", {})
    loaded = _unwrap(path, loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ArtifactError(f"{path}: holds no state dict (names -> tensors)")
    entry = attached.get(KEY) if isinstance(attached, dict) else None
    text = entry.get("json") if isinstance(entry, dict) else None
    metadata = decode(text, str(path)) if isinstance(text, str) else None
    tensors = {name: _plain(path, name, value) for name, value in loaded.items()}
    gate_of(tensors, metadata, str(path))
    return Artifact(tensors, metadata)


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


def _unwrap(path: Path, loaded: Any) -> Any:
    """The state dict in what a training script saved, its names without the prefixes of wrappers."""
    notes = []
    while isinstance(loaded, dict) and (entry := next((k for k in NESTED if isinstance(loaded.get(k), dict)), None)):
        notes.append(f"the weights in its entry {entry}")
        loaded = loaded[entry]
    if isinstance(loaded, dict):
        while loaded and (
            prefix := next((p for p in PREFIXES if all(isinstance(k, str) and k.startswith(p) for k in loaded)), None)
        ):
            notes.append(f"names without {prefix}")
            loaded = {name.removeprefix(prefix): value for name, value in loaded.items()}
    if notes:
        warnings.warn(f"{path}: a training checkpoint; taken are {', '.join(notes)}", PorterNote, stacklevel=2)
    return loaded


def _plain(path: Path, name: str, value: Tensor) -> Tensor:
    """``value`` as a plain tensor of a dtype that numpy has (else float32). Raises ArtifactError."""
    value = value.detach()
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
        kind = "meta" if value.is_meta else "quantized" if value.is_quantized else str(value.layout)
        raise ArtifactError(f"{path}: tensor {name}: is {kind}, not an ordinary dense tensor")
    return value.float() if value.dtype in WITHOUT_NUMPY else value
