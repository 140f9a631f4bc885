"""Finding an artifact's file: named itself, in a release's folder, or at the URL of either."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from porter.errors import CheckpointError
from porter.mapping.options import PathLike
from porter.sources.remote import exists, is_url, mirror

SUFFIXES = (".pth", ".pt", ".safetensors")
WEIGHTS, MAPPING = "model.safetensors", "mapping.yaml"  # in a release


class ArtifactFile(NamedTuple):
    """A local artifact: ``path`` of the file, and what was ``given``.

    ``mapping`` is the mapping file of a release whose variant is no built-in one. ``copy`` is the temporary folder of
    what came from a URL, and goes with this value.
    """

    path: Path
    given: str
    mapping: Path | None = None
    copy: tempfile.TemporaryDirectory[str] | None = None


def find_artifact(source: PathLike) -> ArtifactFile | None:
    """The artifact that ``source`` names; None where it names a TensorFlow source. Raises CheckpointError for URLs."""
    given = os.fspath(source)
    if is_url(given):
        return _remote(given)
    path = Path(given)
    if path.is_dir() and (path / WEIGHTS).is_file():
        own = path / MAPPING
        return ArtifactFile(path / WEIGHTS, given, own if own.is_file() else None)
    return ArtifactFile(path, given) if path.suffix in SUFFIXES else None


def _remote(url: str) -> ArtifactFile | None:
    place = url.split("?")[0].split("#")[0].rstrip("/")
    if place.endswith(SUFFIXES):
        found = mirror(url)
        return ArtifactFile(found.path, url, copy=found.folder)
    if url.startswith("http") or PurePosixPath(place).suffix:  # a web server has no folders
        return None
    weights = f"{place}/{WEIGHTS}"
    try:
        if not exists(weights):
            return None
    except CheckpointError as error:
        raise error.renamed(weights, url) from error
    found, mapping = mirror(weights), None
    if exists(f"{place}/{MAPPING}"):
        own = mirror(f"{place}/{MAPPING}")
        mapping = own.path.rename(found.path.with_name(MAPPING))
    return ArtifactFile(found.path, url, mapping, found.folder)
