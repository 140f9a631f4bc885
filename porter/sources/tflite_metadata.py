"""TensorFlow Lite's metadata: how pixels become the values that a float model takes.

Numbers are field positions in tflite-support's metadata_schema.fbs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from flatbuffers import number_types

from porter.sources.flatbuffer import Node, read_flatbuffer

NORMALIZATION = 1  # in the union ProcessUnitOptions


class Normalization(NamedTuple):
    """The model takes (pixel - mean) / std; one number each, or one for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalization(metadata: bytes, what: str) -> Normalization | None:
    """That of the first input, if ``metadata`` has one. Raises CheckpointError, beginning with ``what``."""
    return read_flatbuffer(metadata, _normalization, f"{what}: its TFLITE_METADATA is damaged") if metadata else None


def _normalization(model: Node) -> Normalization | None:
    subgraph = next(model.children(3), None)
    tensor = next(subgraph.children(2), None) if subgraph else None
    for unit in tensor.children(4) if tensor else ():
        options = unit.child(1)
        if options is None or unit.number(0, number_types.Uint8Flags) != NORMALIZATION:
            continue
        mean, std = options.numbers(0, "f"), options.numbers(1, "f")
        if not mean or not std or not all(map(math.isfinite, mean + std)) or 0 in std:
            raise ValueError(f"mean {mean[:4]} and std {std[:4]} of its normalization")
        return Normalization(mean, std)
    return None
