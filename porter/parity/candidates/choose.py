"""Opening the candidate that a name stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from porter.artifacts.artifact import ArtifactFile
from porter.errors import ParityError
from porter.mapping.options import PathLike
from porter.network.node import Size
from porter.parity.candidates.callables import is_callable
from porter.parity.candidates.candidate import Candidate
from porter.parity.candidates.own import artifact, converted
from porter.parity.references.wire import PROGRAMS
from porter.port import Port


def open_candidate(
    named: PathLike | ArtifactFile | None,
    port: Port,
    mapping: PathLike | None,
    weights_file: PathLike | None,
    sizes: Sequence[Size] | None = None,
) -> Candidate:
    """The candidate ``named``, for images of ``sizes``; if None, what ``port`` converts to.

    ``named`` is a ``.pth`` or ``.safetensors`` (a state dict of our class or timm's), ``timm:NAME`` (``weights_file``
    is its state dict), ``package.module:callable`` or ``file.py:callable`` (runs that code, which returns an
    ``nn.Module``), an ``.onnx``, a ``.pt2``, or any TensorFlow source. Raises PorterError.
    """
    if named is None:
        return converted(port)
    text = named.given if isinstance(named, ArtifactFile) else os.fspath(named)
    kind, colon, name = text.partition(":")
    if weights_file is not None and kind != "timm":
        raise ParityError(f"{text}: only timm:NAME takes a weights file")
    if isinstance(named, ArtifactFile):
        return artifact(named, port, mapping)
    from porter.parity.candidates import foreign

    if kind == "timm" and colon:
        return foreign.timm_model(name, None if weights_file is None else Path(weights_file), port)
    if text.endswith(tuple(f".{ending}" for ending in PROGRAMS)):
        return foreign.program(Path(text), sizes or [port.mapping.input.sides])
    if is_callable(text):
        return foreign.called(text, port)
    return foreign.tensorflow_source(text, mapping)
