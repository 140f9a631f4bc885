"""Ports that are not ours: modules of any class with their own names, exported files, other TensorFlow sources."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from porter.artifacts.artifact import Artifact, load_artifact
from porter.errors import ArtifactError, ParityError, PorterError
from porter.mapping.options import ArtifactLayout
from porter.models.timm_import import import_timm
from porter.network.node import Size
from porter.network.nodes import CLASS_ENDPOINTS, endpoint_names
from porter.parity.candidates.candidate import Candidate, Output, Outputs, Question
from porter.parity.candidates.own import unrounded
from porter.parity.candidates.programs import are_probabilities
from porter.parity.references.child import in_child
from porter.parity.references.choose import memory_for, open_reference
from porter.parity.references.wire import Request
from porter.port import Port, plan_port
from porter.sources.checkpoint import sha256
from porter.text import printable

LAYOUTS = get_args(ArtifactLayout)
SOFTMAX = "softmax of its output"


def timm_model(name: str, weights_file: Path | None, port: Port) -> Candidate:
    """timm's model ``name`` with the state dict ``weights_file`` (strict), or its own weights. Raises ParityError."""
    try:
        timm = import_timm()
    except (ImportError, RuntimeError) as error:
        raise ParityError(f"timm:{name}: timm cannot be imported ({error})") from error
    try:
        model: nn.Module = timm.create_model(name, pretrained=weights_file is None)
        if weights_file is not None:
            model.load_state_dict(load_artifact(weights_file).tensors, strict=True)
    except PorterError:
        raise
    except Exception as error:  # unknown names, hubs out of reach, files that do not fit
        reason = " ".join(str(error).split())
        raise ParityError(f"timm:{name}: timm cannot make it ({reason[:200]})") from error
    found = module(f"timm:{name}", model, port)
    return found if weights_file is None else replace(found, digests={weights_file.name: sha256(weights_file)})


def called(name: str, port: Port) -> Candidate:
    """The ``nn.Module`` that ``package.module:callable`` or ``file.py:callable`` returns. This runs its code.

    Raises ParityError if it returns anything else.
    """
    place, _, attribute = name.rpartition(":")
    try:
        make = getattr(_import_module(place), attribute)
        model = make()
    except Exception as error:  # it is somebody's code
        raise ParityError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(model, nn.Module):
        raise ParityError(f"{name}: gives {type(model).__name__}, not an nn.Module")
    return module(name, model, port)


def _import_module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def module(name: str, model: nn.Module, port: Port) -> Candidate:
    """Any ``nn.Module`` that takes (N, 3, H, W) images, hooked at every submodule, in float32 and float64.

    If its state dict has the entries and values of a port of the source, float64 uses the source's unrounded weights.
    Otherwise it uses the module's own, whose constants may be folded and rounded.
    """
    single = model.eval().float()
    unrounded = _unrounded_state(single, port)
    exact = copy.deepcopy(single).double()
    if unrounded is not None:
        exact.load_state_dict(single.state_dict() | unrounded)

    def run(images: np.ndarray, questions: frozenset[Question]) -> Outputs:
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        doubles = _hook_modules(exact, inputs.double(), name) if "function" in questions else []
        singles = _hook_modules(single, inputs.float(), name) if "rounding" in questions else []
        for position, (own_name, _) in enumerate(doubles or singles):
            exact_one, single_one = (side[position][1] if side else None for side in (doubles, singles))
            yield own_name, Output(exact_one, single_one)
        last = [side[-1][1] if side else None for side in (doubles, singles)]
        if all(values is None or (values.ndim == 2 and not are_probabilities(values)) for values in last):
            exact_one, single_one = (None if values is None else _softmax(values) for values in last)
            yield SOFTMAX, Output(exact_one, single_one)

    return Candidate(name, run, foreign=True, rounded_weights=unrounded is None, modules=(single, exact))


def _unrounded_state(model: nn.Module, port: Port) -> dict[str, Tensor] | None:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for layout in LAYOUTS:
        try:
            found, changed = unrounded(Artifact(arrays, None), port, layout)
        except ArtifactError:  # another class, or another layout
            continue
        if not changed:
            return found
    return None


def _hook_modules(model: nn.Module, inputs: Tensor, name: str) -> list[tuple[str, np.ndarray]]:
    """Outputs of all submodules, NHWC, in the order in which they finish; the module's own comes last, as ``""``."""
    found: list[tuple[str, np.ndarray]] = []

    def keep(own_name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (2, 4):
                # A copy: later operations may work in place
                values = output.detach().permute(0, 2, 3, 1) if output.ndim == 4 else output.detach()
                found.append((own_name, values.cpu().numpy().copy()))

        return hook

    handles = [child.register_forward_hook(keep(own_name)) for own_name, child in model.named_modules()]
    try:
        with torch.no_grad():
            model(inputs.to(next(model.parameters(), inputs).device))
    except Exception as error:  # it is somebody's code
        reason = " ".join(str(error).split())[:200]
        raise ParityError(f"{name}: does not run on images of {list(inputs.shape)} ({reason})") from error
    finally:
        for handle in handles:
            handle.remove()
    if not found or found[-1][0] != "":
        raise ParityError(f"{name}: does not give one tensor (N, classes) or (N, C, H, W)")
    return found


def program(path: Path, sizes: Sequence[Size]) -> Candidate:
    """An ``.onnx`` or ``.pt2`` file in its own process, for images of ``sizes``; gives logits or predictions.

    Raises ParityError.
    """
    if not path.is_file():
        raise ParityError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}")
    request = Request(path.suffix[1:], os.fsencode(path.absolute()), printable(str(path)), memory_for([path], sizes))
    runner = in_child(request)

    def run(images: np.ndarray, _questions: frozenset[Question]) -> Outputs:
        for name, (values, _) in runner.run(images.astype("float32"), CLASS_ENDPOINTS):
            yield name, Output(None, values)

    return Candidate(str(path), run, frozenset(("rounding",)), size=runner.size, digests={path.name: sha256(path)})


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def tensorflow_source(path: str) -> Candidate:
    """Another TensorFlow source: its own graph, or the interpreter of a ``.tflite``. Raises PorterError."""
    port = plan_port(path)
    reference = open_reference("auto", port)

    def run(images: np.ndarray, _questions: frozenset[Question]) -> Outputs:
        for name, (values, noise) in reference.run(
            images.astype("float32"), endpoint_names(port.network, port.classes)
        ):
            if reference.precision == "float64":
                yield name, Output(values, None, noise)
            else:
                yield name, Output(None, values)

    answers: frozenset[Question] = frozenset(("rounding",))
    if reference.precision == "float64":
        answers |= {"function"}
    name = f"{path} ({reference.name})"
    return Candidate(name, run, answers, size=reference.size, digests=port.checkpoint.digests())
