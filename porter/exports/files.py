"""A port as a file of another runtime: ``.onnx`` or ``.tflite``, without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from porter.artifacts.artifact import Artifact
from porter.artifacts.metadata import KEY, Metadata, encode
from porter.errors import ArtifactError
from porter.exports.operations import Program, classifier_program, segmenter_program
from porter.network.network import TIMM_GATE, Network

if TYPE_CHECKING:
    pass

SUFFIXES = (".onnx", ".tflite")


def export_bytes(suffix: str, network: Network, artifact: Artifact, size: int) -> bytes:
    """``network`` with the weights and metadata of ``artifact`` as a file, for square images of ``size`` pixels.

    A batch may have any size. A ``.tflite`` of what was trained for 8 bits is the integer one; the weights must be in
    layout ``slim`` then. Raises ArtifactError where the port has no such form.
    """
    arrays, metadata = artifact
    assert metadata is not None
    if suffix not in SUFFIXES:
        raise ValueError(f"{suffix}: no export; one of {', '.join(SUFFIXES)}")
    sides = (size, size)
    if network.detection is not None:
        raise ArtifactError(f"a detector has no {suffix} form; name a .pth or .safetensors")
    if network.segmentation is not None:
        if suffix != ".onnx":
            raise ArtifactError(f"a segmenter has no {suffix} form; name an .onnx, .pth or .safetensors")
        return onnx_bytes(segmenter_program(network, metadata.num_classes, arrays), sides, metadata)
    if suffix == ".tflite":
        from porter.exports.tflite_model import tflite_model

        if not metadata.ranges:
            return tflite_model(classifier_program(network, metadata.num_classes, arrays), sides)
        # Its constant stays in the graph, where the source has it
        program = classifier_program(replace(network, gate=TIMM_GATE), metadata.num_classes, arrays)
        return tflite_model(program, sides, metadata.ranges, metadata.source_gate)
    if metadata.ranges:
        raise ArtifactError(
            f"a {suffix} is of a float network, and this port computes 8 bits: write a .tflite, or the float network "
            "(fake_quant=False)"
        )
    return onnx_bytes(classifier_program(network, metadata.num_classes, arrays), sides, metadata)


def onnx_bytes(program: Program, size: tuple[int, int], metadata: Metadata | None) -> bytes:
    """An ONNX file that knows where it comes from."""
    from porter.exports.onnx_model import onnx_model

    model = onnx_model(program, size)
    if metadata is not None:
        model.metadata_props.add(key=KEY, value=encode(metadata))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
