"""``deploy``: a model for inference on the CPU, computed by ONNX Runtime, or by LiteRT where it computes 8 bits."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from porter.errors import ArtifactError, PorterNote
from porter.exports.program import Program, program
from porter.exports.runtime import LiteSession, Session
from porter.exports.tflite_model import tflite_model
from porter.mapping.options import PathLike
from porter.mapping.ranges import Range, levels
from porter.models.build import Whole, build_model
from porter.models.create import open_model
from porter.models.fake_quant import EIGHT_BITS_ENTRY, INPUT, nearest_levels
from porter.models.mobilenet_v3 import MobileNetV3, MobileNetV3Features, check_images
from porter.network.network import TIMM_GATE
from porter.network.node import Size


def deploy(
    model: nn.Module | PathLike, size: Size | int | None = None, threads: int | None = None
) -> Deployed | DeployedEightBits:
    """Make ``model`` ready for inference on the CPU: the same function, computed by ONNX Runtime.

    A classifier that computes 8 bits is computed in integers by LiteRT, with the same levels.

    Args:
        model: What ``create_model`` gives, float32 or 8 bits; or an artifact or checkpoint that it takes. Weights are
            copied.
        size: The only size of images: a side, or (height, width). None: images of any size, except for a segmenter.
        threads: How many threads compute; None: as many as torch uses now.

    Returns:
        A module: (N, channels, H, W) float32 -> what ``model`` gives: logits, the list of feature maps of a
        ``features_only`` model, or encodings and logits of a detector. Tensors in, tensors out; numpy arrays in, numpy
        arrays out.

    Raises:
        PorterError: On a model in float64, on one whose layers are not MobileNetV3's own, on one of 8 bits that has no
            integer ``.tflite``, and where ONNX Runtime or LiteRT is missing.

    Example:
        >>> fast = porter.deploy(porter.create_model("small_075", source))
        >>> fast(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    if not isinstance(model, nn.Module):
        model = open_model(model).model
    assert isinstance(model, nn.Module)
    sides = (size, size) if isinstance(size, int) else size
    if hasattr(model, EIGHT_BITS_ENTRY):
        return DeployedEightBits(model, sides, threads or torch.get_num_threads())
    return Deployed(model_program(model), sides, threads or torch.get_num_threads())


class Deployed(nn.Module):
    """What ``deploy`` makes. It holds no parameters and computes no gradients; larger batches run in parts."""

    def __init__(self, program: Program, size: Size | None, threads: int) -> None:
        super().__init__()
        self.program, self.size, self.threads = program, size, threads
        self._session = Session(program, size, threads)

    def forward(self, x: Tensor | np.ndarray) -> Any:
        """(N, channels, H, W) float32 -> (N, num_classes), or a list of maps. Raises TypeError or ValueError."""
        try:  # checking first would cost 3 % of an image's time, as Python's data have left the CPU's caches
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
        _check_size((x.shape[2], x.shape[3]), self.size)
        values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        return np.ascontiguousarray(values, np.float32)


class DeployedEightBits(nn.Module):
    """What ``deploy`` makes of a classifier that computes 8 bits: the integer graph of ``convert -o x.tflite``.

    LiteRT's own kernels run it, one image at a time. Their levels are the model's, where its ranges state their
    arithmetic; XNNPACK's are not.
    """

    def __init__(self, model: nn.Module, size: Size | None, threads: int) -> None:
        super().__init__()
        if not isinstance(model, MobileNetV3):
            raise ArtifactError(f"a {type(model).__name__} that computes 8 bits cannot be deployed; a classifier can")
        self.size, self.threads, self._channels, self._gate = size, threads, model.network.channels, model.network.gate
        self._ranges: dict[str, Range] = model.ranges  # type: ignore[assignment]
        if not any(limits.unit for limits in self._ranges.values()):
            raise ArtifactError("ranges of training with fake quantisation state no integer arithmetic to deploy")
        arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in model.state_dict().items()}
        # The gate's constant stays in the graph, where the source has it
        self._program = program(replace(model.network, gate=TIMM_GATE), model.num_classes, arrays)
        height, width = size or model.pretrained_cfg["input_size"][1:]
        self._session = self._session_for((height, width))

    def _session_for(self, size: Size) -> LiteSession:
        content = tflite_model(self._program, size, self._ranges, self._gate, logits=True)
        return LiteSession(content, size, self.threads)

    def forward(self, x: Tensor | np.ndarray) -> Any:
        """(N, channels, H, W) float32 -> (N, num_classes) float64, which are levels. Raises TypeError or ValueError."""
        check_images(x, self._channels)
        given = x if isinstance(x, Tensor) else torch.from_numpy(x)
        size = (given.shape[2], given.shape[3])
        _check_size(size, self.size)
        if size != self._session.size:
            self._session = self._session_for(size)
        # One image at a time stays in the cache, where a batch in float64 takes as long as the network
        rows = [self._session.run(self._levels(image)) for image in given.detach().cpu()]
        found = np.array(rows, np.float64).reshape(len(given), self._session.classes)
        return torch.from_numpy(found) if isinstance(x, Tensor) else found

    def _levels(self, image: Tensor) -> np.ndarray:
        """(channels, H, W) -> (H, W, channels), the levels of the network's input, from 0 to 255."""
        _, zero = levels(self._ranges[INPUT])
        found: np.ndarray = (nearest_levels(image.double(), self._ranges[INPUT]) + zero).numpy()
        return found.transpose(1, 2, 0)


def fastest(model: nn.Module, size: Size) -> nn.Module:
    """``model`` deployed on the CPU for images of ``size``; where that cannot be, 8 bits as PyTorch computes them."""
    try:
        return deploy(model, size)
    except ArtifactError as error:
        if not hasattr(model, EIGHT_BITS_ENTRY):
            raise
        warnings.warn(f"8 bits are computed by PyTorch, which is slow: {error}", PorterNote, stacklevel=2)
        return model


def _check_size(size: Size, wanted: Size | None) -> None:
    if wanted is not None and size != wanted:
        raise ValueError(f"deployed for {wanted[0]}x{wanted[1]} images, not {size[0]}x{size[1]}")


def model_program(model: nn.Module) -> Program:
    """``model`` as nodes and weights. Raises ArtifactError where it is not a float32 network of create_model."""
    if not isinstance(model, (Whole, MobileNetV3Features)):
        raise ArtifactError(f"{type(model).__name__}: only what create_model gives can be deployed")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ArtifactError(
            "only a float32 model can be deployed or exported; one of 8 bits as its float network, fake_quant=False"
        )
    _check_layers(model)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    if isinstance(model, MobileNetV3Features):
        return program(model.network, 0, arrays, model.endpoints)
    assert isinstance(model, Whole)
    return program(model.network, model.num_classes, arrays)


def _check_layers(model: Whole | MobileNetV3Features) -> None:
    """Raise ArtifactError where a layer of ``model`` is not that of its network, which programs are made from."""
    with torch.device("meta"):
        if isinstance(model, MobileNetV3Features):
            expected: nn.Module = MobileNetV3Features(model.network)
        else:
            expected = build_model(model.network, model.num_classes)
    own, wanted = _layers(model), _layers(expected)
    for name in wanted | own:
        if own.get(name) != wanted.get(name):
            raise ArtifactError(
                f"layer {name}: is {own.get(name, 'missing')}, the network has {wanted.get(name, 'none')}; "
                "programs are made of the network's own layers"
            )


def _layers(model: nn.Module) -> dict[str, str]:
    """Layers by name, and what each computes, in words."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found[name] = f"a batch norm of epsilon {module.eps:.6g}"
        elif not any(module.children()):
            found[name] = f"{type(module).__name__}({INPLACE.sub('', module.extra_repr())})"
    return found


INPLACE = re.compile(r"(, )?inplace(=\w+)?")
