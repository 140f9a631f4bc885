"""Graphs that lead nowhere, or to themselves, or on without end."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import hostile_files

from porter.errors import CheckpointError
from porter.sources import open_checkpoint, protos
from porter.sources.bundle_graph import read_graph
from porter.sources.tflite_graph import read_graph as read_tflite_graph
from porter.sources.tflite_operations import stored_graph
from porter.sources.tflite_writer import NewOperator, NewTensor, tflite_bytes


@pytest.mark.parametrize("functions", [1, 2, 40])
def test_functions_that_call_each_other(tmp_path, functions):
    """Forty that call the next twice are 2^40 nodes."""
    (tmp_path / "saved_model.pb").write_bytes(hostile_files.calls(functions))
    with pytest.raises(CheckpointError, match=r"saved_model\.pb: the calls of its functions have no end"):
        read_graph(tmp_path / "saved_model.pb", {})


@pytest.mark.parametrize("op", [b"Identity", b"Add", b"Conv2D", b"Reshape", b"NoSuchOperation"])
def test_circles(tmp_path, op):
    """Values that need themselves are left out."""
    graph = protos.GraphDef.FromString(hostile_files.graph((1, 1, 2, 2), float_val=[1.0]))
    graph.node.add(name=b"x", op=op, input=[b"y", b"y"])
    graph.node.add(name=b"y", op=op, input=[b"x:7", b"x", b"nowhere"])
    graph.node.add(name=b"z", op=b"Relu", input=[b"c"])
    (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
    kinds = [operation.kind for operation in open_checkpoint(tmp_path / "g.pb").graph.in_order]
    assert kinds[-2:] == ["convolution", "relu"]


def tflite(path, steps, scales=()):
    """Convolutions and additions on tensors of one value; tensor 0 is the kernel, 1 the image."""
    zeros = (0,) * len(scales)
    dtype = "int8" if scales else "float32"
    kernel = NewTensor("w", (1, 1, 1, 1), dtype, np.ones((1, 1, 1, 1), dtype), scales, zeros)
    maps = [NewTensor("t", (1, 1, 1, 1), dtype, None, scales, zeros) for _ in range(4)]
    options = {"padding": 0, "stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1}
    operators = [NewOperator(kind, given, made, options if kind == "conv_2d" else {}) for kind, given, made in steps]
    path.write_bytes(tflite_bytes([kernel, *maps], operators, 1, [4]))
    return path


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("conv_2d", [2, 0], [3]), ("add", [3, 3], [2]), ("add", [3, 3], [4])], "takes what is computed later"),
        ([("conv_2d", [1, 0], [4]), ("add", [1, 1], [4])], "tensor 4 is computed twice"),
    ],
)
def test_operators_in_circles(tmp_path, steps, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tflite(tmp_path / "m.tflite", steps))


@pytest.mark.parametrize("scale", [3e38, 1e-45])
def test_scales_beyond_all_numbers(tmp_path, scale):
    """The product of two is infinite in float32, or nothing."""
    steps = [("mul", [1, 0], [2]), ("add", [2, 0], [3]), ("conv_2d", [3, 0], [4])]
    opened = open_checkpoint(tflite(tmp_path / "m.tflite", steps, (scale,)))
    assert len(opened.graph.levels[0]) == 256


def test_metadata_that_is_none(tmp_path):
    path = tflite(tmp_path / "m.tflite", [("conv_2d", [1, 0], [4])])
    for damaged in (b"\xff" * 40, b"\4\0\0\0", b"\0" * 3):
        with pytest.raises(CheckpointError, match=r"m\.tflite: its TFLITE_METADATA is damaged"):
            stored_graph(replace(read_tflite_graph(path), metadata=damaged), path)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "x"},
        {"name": "x", "op": "Y", "attr": {"s": {"s": "?"}}},
        {"name": "x", "op": "Y", "attr": {"s": {"list": {"i": ["1" * 5000]}}}},
        {"name": "x", "op": "Y", "attr": {"s": {"list": {"i": [1 << 64]}}}},
        {"name": "\ud800", "op": "Y"},
    ],
)
def test_topologies_that_are_none(tmp_path, node):
    (tmp_path / "w.bin").write_bytes(bytes(8))
    weights = [{"name": "a", "shape": [2], "dtype": "float32"}]
    manifest = [{"paths": ["w.bin"], "weights": weights}]
    model = {"modelTopology": {"node": [node]}, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match=r"model\.json: "):
        assert open_checkpoint(tmp_path).graph
