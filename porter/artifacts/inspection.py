"""``inspect`` for artifacts and releases: metadata, tensors, parity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from porter.artifacts.artifact import PARITY, ArtifactFile, load_artifact
from porter.artifacts.variant import class_count
from porter.errors import ArtifactError

Content = TypeVar("Content")


class Parity(msgspec.Struct, frozen=True):
    """What is read of a release's ``parity.json``; ``digests`` are SHA-256 by file name."""

    passed: bool
    sentence: str
    reference: str
    digests: dict[str, str]


def read_json(path: Path, kind: type[Content]) -> Content:
    """A JSON file of a release. Raises ArtifactError if it is no ``kind``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path}: not what a release has there ({error})") from error


def inspect_artifact(file: ArtifactFile) -> dict[str, Any]:
    """Everything that is known of ``file``, as plain values. Raises ArtifactError."""
    artifact = load_artifact(file)
    arrays = artifact.arrays
    found: dict[str, Any] = {
        "file": file.given,
        "sha256": file.digests[file.path.name],
        "bytes": file.path.stat().st_size,
        "tensors": [{"name": n, "shape": list(v.shape), "dtype": str(v.dtype)} for n, v in arrays.items()],
        "classes": class_count(arrays),
        "metadata": msgspec.to_builtins(artifact.metadata) if artifact.metadata else None,
        "parity": dict(artifact.metadata.parity) if artifact.metadata else {},
    }
    beside = file.path.with_name(PARITY)
    if file.path.parent.name and beside.is_file():
        parity = read_json(beside, Parity)
        found["parity"] |= {"verdict": parity.sentence, "reference": parity.reference, "passed": parity.passed}
    return found


def artifact_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same as lines for a terminal: a summary, then every tensor."""
    yield from _summary(found)
    yield ""
    widest = max((len(tensor["name"]) for tensor in found["tensors"]), default=0)
    for tensor in found["tensors"]:
        yield f"{tensor['name']:<{widest}}  {'x'.join(map(str, tensor['shape'])) or 'scalar':<16} {tensor['dtype']}"


def _summary(found: dict[str, Any]) -> Iterator[str]:
    metadata = found["metadata"]
    yield f"read      {found['file']} (artifact, {found['bytes']:,} bytes)"
    yield f"sha256    {found['sha256']}"
    if metadata is None:
        yield f"variant   not said: not written by mnv3-port; {found['classes']} classes"
        return
    yield f"written   by {metadata['tool']}"
    dropped = ", background dropped" if metadata["background_dropped"] else ""
    yield f"variant   {metadata['variant']}, {found['classes']} classes{dropped}"
    folded = ", batch norms folded" if metadata.get("folded") else ""
    eight = f", computes 8 bits ({len(metadata['ranges'])} ranges)" if metadata.get("ranges") else ""
    yield f"layout    {metadata['layout']}: gate {metadata['gate']:.6g}{folded}{eight}"
    step = f", step {metadata['step']}" if metadata["step"] is not None else ""
    yield f"weights   {metadata['weights']}{step}"
    for name, digest in metadata["sources"].items():
        yield f"source    {digest}  {name}"
    for name, value in found["parity"].items():
        yield f"parity    {name}: {value}"
