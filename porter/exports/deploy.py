"""``deploy``: a model for inference on the CPU, computed by ONNX Runtime."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from porter.errors import ArtifactError
from porter.exports.program import Program, program
from porter.exports.runtime import Session
from porter.mapping.options import PathLike
from porter.models.build import Whole
from porter.models.create import open_model
from porter.models.mobilenet_v3 import MobileNetV3Features, check_images
from porter.network.node import Size

Deployable = nn.Module | PathLike


def deploy(model: Deployable, size: Size | int | None = None, threads: int | None = None) -> Deployed:
    """Make ``model`` ready for inference on the CPU: the same function, computed by ONNX Runtime.

    Args:
        model: What ``create_model`` gives, float32; or an artifact or checkpoint that it takes. Weights are copied.
        size: The only size of images: a side, or (height, width). None: images of any size, except for a segmenter.
        threads: How many threads compute; None: as many as torch uses now.

    Returns:
        A module: (N, channels, H, W) float32 -> what ``model`` gives: logits, the list of feature maps of a
        ``features_only`` model, or encodings and logits of a detector. Tensors in, tensors out; numpy arrays in, numpy
        arrays out.

    Raises:
        PorterError: On a model that computes 8 bits or in float64, on one whose layers are not MobileNetV3's own, and
            where ONNX Runtime is missing.

    Example:
        >>> fast = porter.deploy(porter.create_model("small_075", source))
        >>> fast(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    if not isinstance(model, nn.Module):
        model = open_model(model).model
    assert isinstance(model, nn.Module)
    sides = (size, size) if isinstance(size, int) else size
    return Deployed(model_program(model), sides, threads or torch.get_num_threads())


class Deployed(nn.Module):
    """What ``deploy`` makes. It holds no parameters and computes no gradients; larger batches run in parts."""

    def __init__(self, program: Program, size: Size | None, threads: int) -> None:
        super().__init__()
        self.program, self.size, self.threads = program, size, threads
        self._session = Session(program, size, threads)

    def forward(self, x: Tensor | np.ndarray) -> Any:
        """(N, channels, H, W) float32 -> (N, num_classes), or a list of maps. Raises TypeError or ValueError."""
        try:  # checking first would cost 3 % of an image's time: what Python touches is not in the caches by then
            found = self._session.run(x.numpy() if isinstance(x, Tensor) else x)
        except Exception:  # ONNX Runtime has its own kinds; `_ready` converts ``x``, or says what is wrong with it
            found = self._session.run(self._ready(x))
        values = [torch.from_numpy(one) for one in found] if isinstance(x, Tensor) else found
        if self.program.features:
            return values
        head = self.program.network.head
        return values[0] if head is None or head.MODULE_OUTPUTS == 1 else tuple(values[: head.MODULE_OUTPUTS])

    def endpoints(self, x: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Every endpoint by TensorFlow's name, each an output of the graph: (N, C, H, W), or (N, classes)."""
        return dict(zip(self.program.endpoints, self._all_values.run(self._ready(x)), strict=True))

    @cached_property
    def _all_values(self) -> Session:
        return Session(self.program, self.size, self.threads, list(self.program.endpoints.values()))

    def _ready(self, x: Tensor | np.ndarray) -> np.ndarray:
        """``x`` as ONNX Runtime takes it."""
        check_images(x, self.program.channels)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(f"deployed for {self.size[0]}x{self.size[1]} images, not {x.shape[2]}x{x.shape[3]}")
        values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        return np.ascontiguousarray(values, np.float32)


def model_program(model: nn.Module) -> Program:
    """``model`` as nodes and weights. Raises ArtifactError where it is not a float32 network of create_model."""
    if not isinstance(model, (Whole, MobileNetV3Features)):
        raise ArtifactError(f"{type(model).__name__}: only what create_model gives can be deployed")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ArtifactError(
            "only a float32 model can be deployed; one of 8 bits as its float network, fake_quant=False"
        )
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    if isinstance(model, MobileNetV3Features):
        return program(model.network, 0, arrays, model.endpoints)
    assert isinstance(model, Whole)
    return program(model.network, model.num_classes, arrays)
