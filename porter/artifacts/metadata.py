"""What an artifact says about itself."""

from __future__ import annotations

import msgspec

from porter.errors import ArtifactError
from porter.mapping.ranges import Range, check_range
from porter.mapping.stated import Stated
from porter.network.network import HeadConstants
from porter.network.spec import MOST

KEY = "mnv3_port"  # the entry's name in both formats
FORMAT = 1


class Metadata(HeadConstants, frozen=True, omit_defaults=True):
    """Where an artifact comes from and what its weights are made for.

    ``gate`` is the squeeze-excite constant these weights need, ``source_gate`` the checkpoint's own; where they differ,
    the ratio is folded into the ``project`` weights, and ``fold_nudges`` undoes it bit for bit (see
    porter.mapping.gate). ``bn_folded`` (``folded`` in the file) is true where batch norms are folded into convolutions.
    ``ranges`` are those that the source was quantised to, by module or entry: an artifact with ranges computes 8 bits.
    ``sources`` are SHA-256 digests by file name, ``mapping`` that of the mapping's content, or in a release with a
    mapping file, of that file. ``parity`` are the figures that a release was checked with,
    ``class_names`` the classes' names where they are not ImageNet's. ``stated`` is what the source states of its
    network otherwise than the variant's mapping. ``checksum`` is that of the entries as they were written (see
    porter.artifacts.artifact), and ``changed`` is true where they are not known to be what ``sources`` give: of a
    port that was trained further, say. ``background`` has the class that was dropped, weights and bias as little-endian
    float32, so that it can come back. A head has its constants as the source has them. No paths, no time:
    the same input gives the same bytes.
    """

    tool: str
    variant: str
    layout: str
    gate: float
    source_gate: float
    num_classes: int
    background_dropped: bool
    weights: str
    step: int | None
    sources: dict[str, str]
    mapping: str
    fold_nudges: dict[str, list[int]]
    stated: Stated = Stated()
    bn_folded: bool = msgspec.field(name="folded", default=False)
    ranges: dict[str, Range] = {}  # noqa: RUF012 - msgspec copies it
    parity: dict[str, str] = {}  # noqa: RUF012
    class_names: list[str] = []  # noqa: RUF012
    checksum: str = ""
    changed: bool = False
    background: bytes = b""
    format: int = FORMAT


def encode(metadata: Metadata) -> str:
    """Metadata as JSON with keys in a fixed order."""
    return msgspec.json.encode(metadata, order="deterministic").decode()


def decode(text: str, file: str) -> Metadata:
    """Read what ``encode`` wrote. Raises ArtifactError naming ``file``."""
    try:
        metadata = msgspec.json.decode(text, type=Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: its mnv3-port metadata is not readable: {error}") from error
    try:
        for name, limits in metadata.ranges.items():
            check_range(limits, f"ranges.{name}")
        for name, gate in (("gate", metadata.gate), ("source_gate", metadata.source_gate)):
            if not 1 / MOST <= gate <= MOST:
                raise ValueError(f"{name}: {gate:g} is not between 1/{MOST} and {MOST}")
    except ValueError as error:
        raise ArtifactError(f"{file}: its mnv3-port metadata are impossible: {error}") from error
    if metadata.format > FORMAT:
        raise ArtifactError(f"{file}: written by a later mnv3-port ({metadata.tool}); upgrade to read it")
    return metadata
