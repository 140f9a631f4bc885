"""A port as a file of another runtime: ``.onnx`` or ``.tflite``, without torch."""

from __future__ import annotations

from dataclasses import replace

from porter.artifacts.artifact import ARTIFACT_SUFFIXES, Artifact
from porter.artifacts.metadata import KEY, Metadata, encode
from porter.errors import ArtifactError
from porter.exports.program import Program, program
from porter.network.detection import Detection
from porter.network.network import TIMM_GATE, Network
from porter.network.node import Size

GRAPH_SUFFIXES = (".onnx", ".tflite")
OUTPUT_SUFFIXES = (*ARTIFACT_SUFFIXES, *GRAPH_SUFFIXES)  # of what convert writes


def export_bytes(suffix: str, network: Network, artifact: Artifact, size: Size, boxes: bool = False) -> bytes:
    """``network`` with the weights and metadata of ``artifact`` as a file of ``suffix``, for images of ``size``.

    A batch may have any size; with ``boxes``, a detector's graph decodes and suppresses the boxes of one image. A
    ``.tflite`` of what was trained for 8 bits is the integer one; the weights must be in layout ``slim`` then. Raises
    ArtifactError where the port has no such form.
    """
    arrays, metadata = artifact
    assert metadata is not None
    if boxes and not isinstance(network.head, Detection):
        raise ArtifactError(f"a {metadata.variant} port is no detector; leave boxes out")
    if suffix == ".tflite":
        from porter.exports.tflite_model import tflite_model

        if not metadata.ranges:
            return tflite_model(program(network, metadata.num_classes, arrays), size, boxes=boxes)
        # Its constant stays in the graph, where the source has it
        made = program(replace(network, gate=TIMM_GATE), metadata.num_classes, arrays)
        return tflite_model(made, size, metadata.ranges, metadata.source_gate)
    if metadata.ranges:
        raise ArtifactError(
            f"a {suffix} is of a float network, and this port computes 8 bits: write a .tflite, or the float network "
            "(fake_quant=False)"
        )
    return onnx_bytes(program(network, metadata.num_classes, arrays), size, metadata, boxes)


def onnx_bytes(made: Program, size: Size, metadata: Metadata | None, boxes: bool = False) -> bytes:
    """An ONNX file that knows where it comes from."""
    from porter.exports.onnx_model import onnx_model

    model = onnx_model(made, size, boxes=boxes)
    if metadata is not None:
        model.metadata_props.add(key=KEY, value=encode(metadata))
    return model.SerializeToString(deterministic=True)
