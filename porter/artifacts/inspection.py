"""``inspect`` for artifacts and releases: metadata, tensors, parity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from porter.artifacts.artifact import PARITY, ArtifactFile, load_artifact
from porter.artifacts.variant import class_count
from porter.errors import ArtifactError


class _Parity(msgspec.Struct):
    """The part of a release's ``parity.json`` that is shown."""

    passed: bool
    sentence: str
    reference: str


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
    parity = file.path.with_name(PARITY)
    if file.path.parent.name and parity.is_file():
        try:
            parity_json = msgspec.json.decode(parity.read_bytes(), type=_Parity)
        except (msgspec.DecodeError, OSError, RecursionError) as error:
            raise ArtifactError(f"{parity}: not what a release has there ({error})") from error
        found["parity"] |= {
            "verdict": parity_json.sentence,
            "reference": parity_json.reference,
            "passed": parity_json.passed,
        }
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
