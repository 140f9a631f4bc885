"""Programs in ONNX Runtime, and those of 8 bits in LiteRT, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from porter.errors import ArtifactError
from porter.exports.onnx_model import boxes_model, onnx_model
from porter.exports.program import Program
from porter.network.network import Network
from porter.network.node import IMAGE, Size

# Pixels per thread of the parts that larger batches run in: what one layer writes is still in its core's cache when the
# next reads it. Four images of 224 x 224 a thread take 0.85 x the time of 32 at once where a core has 2 MiB.
PART_PIXELS = 4 * 224 * 224


def boxes_session(network: Network, size: Size) -> Any:
    """A session of ``boxes_model``: encodings and logits of one image -> boxes, classes, scores."""
    return onnx_session(boxes_model(network, size).SerializeToString(), threads=1)


def onnx_session(content: bytes, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU. Raises ArtifactError where the package is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ArtifactError(f"needs pip install 'mnv3-port[onnx]' ({error})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Session:
    """Runs ``program`` on images of ``size``, of any where it is None, with ``threads`` threads.

    ``values`` are what it gives instead of the program's outputs. Raises ArtifactError where a package is missing.
    """

    def __init__(self, program: Program, size: Size | None, threads: int, values: Sequence[str] | None = None) -> None:
        self._threads = threads
        self._asked = list(values or program.outputs)
        self._names = list(dict.fromkeys(self._asked))  # a graph gives each of its outputs once
        self._session = onnx_session(onnx_model(program, size, self._names).SerializeToString(), threads)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """(N, channels, H, W) float32 -> one array for each output; its first axis is that of ``images``."""
        if len(images) == 1:
            return self._run(images)
        part = max(1, self._threads * PART_PIXELS // (images.shape[2] * images.shape[3]))
        if len(images) <= part:
            return self._run(images)
        parts = [self._run(images[start : start + part]) for start in range(0, len(images), part)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = self._session.run(self._names, {IMAGE: images})
        if len(self._names) == len(self._asked):
            return found
        by_name = dict(zip(self._names, found, strict=True))
        return [by_name[name] for name in self._asked]


class LiteSession:
    """Runs an integer ``.tflite`` of one input and one output on images of ``size``, by LiteRT's own kernels.

    Raises ArtifactError where the package is missing.
    """

    def __init__(self, content: bytes, size: Size, threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise ArtifactError(f"needs pip install 'mnv3-port[tflite]' ({error})") from error
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.size = size
        self._interpreter = Interpreter(
            model_content=content, num_threads=threads, experimental_op_resolver_type=kernels
        )
        [given], [self._output] = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._given, self._dtype = given["index"], given["dtype"]
        self.classes = int(self._output["shape"][-1])
        self._interpreter.resize_tensor_input(self._given, (1, *size, given["shape"][3]))
        self._interpreter.allocate_tensors()

    def run(self, image: np.ndarray) -> np.ndarray:
        """(H, W, channels) levels from 0 to 255 -> (classes,) float64, what the output's levels stand for."""
        self._interpreter.set_tensor(self._given, (image + np.iinfo(self._dtype).min).astype(self._dtype)[None])
        self._interpreter.invoke()
        scale, zero = self._output["quantization"]
        return (self._interpreter.get_tensor(self._output["index"])[0].astype(np.float64) - zero) * scale
