"""Opening a candidate, and ports that are not ours: modules of any class, exported files, other TensorFlow sources."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from porter.artifacts.artifact import Artifact, ArtifactFile
from porter.errors import ArtifactError, ParityError
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.models.timm_import import timm_model
from porter.network.node import Size
from porter.network.nodes import endpoint_names, nodes
from porter.parity.candidates.callables import is_callable
from porter.parity.candidates.candidate import QUESTIONS, Candidate, Output, Outputs, Question, Recording, StateDict
from porter.parity.candidates.own import artifact, converted, unrounded
from porter.parity.candidates.recorder import Run, recorded, their_code
from porter.parity.references.child import in_child
from porter.parity.references.choose import memory_for, open_reference
from porter.parity.references.wire import PROGRAMS, Request
from porter.port import Port, plan_port
from porter.sources.bounds import MOST
from porter.sources.checkpoint import sha256
from porter.text import printable

# An entry of onnx.proto's TensorProto.external_data: the key, and the length of its value in one or two bytes
LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x01-\x7f])", re.DOTALL)
LONGEST_NAME = 4096  # bytes: Linux's PATH_MAX

LAYOUTS = get_args(ArtifactLayout)
SOME = 0.5  # of a tensor's values: where more differ, it was rounded as a whole


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
    if kind == "timm" and colon:
        file = None if weights_file is None else Path(weights_file)
        found = module(f"timm:{name}", timm_model(name, file), port)
        return found if file is None else replace(found, digests={file.name: sha256(file)})
    if text.endswith(tuple(f".{ending}" for ending in PROGRAMS)):
        return program(Path(text), sizes or [port.mapping.input.sides])
    if is_callable(text):
        return called(text, port)
    return tensorflow_source(text, mapping)


def called(name: str, port: Port) -> Candidate:
    """The ``nn.Module`` that ``package.module:callable`` or ``file.py:callable`` returns. This runs its code.

    Raises ParityError if it returns anything else.
    """
    place, _, attribute = name.rpartition(":")
    with their_code(f"{name}: gives no module"):
        model = getattr(_import_module(place), attribute)()
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
    """Any ``nn.Module`` that takes (N, 3, H, W) images, in float32 and, where it runs in that, in float64.

    If its state dict has the entries of a port of the source, and most values, float64 uses the source's unrounded
    weights where they are equal. Otherwise it uses the module's own, whose constants may be folded and rounded.
    """
    with their_code(f"{name}: is no ordinary module"):
        remarks = _as_handed_over(model)
        with suppress(NotImplementedError):  # a module of torch.export has one mode
            model.eval()
        single = model.float()
        arrays = {own_name: tensor.cpu().numpy() for own_name, tensor in single.state_dict().items()}
    own, weights = _unrounded_state(arrays, port)
    # Weights that were folded in another way were all rounded again; a few that differ were not
    rounded = weights is None or any(share > SOME for share in weights.changed.values())
    with their_code(f"{name}: cannot be copied in float64"):
        exact = _in_float64(single, {} if rounded else own)

    def record(images: np.ndarray, questions: frozenset[Question], keep: int) -> Recording:
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        singles = doubles = None
        if "rounding" in questions:
            singles = Run(name, single, inputs.float().to(_device(single)), keep)
        if "function" in questions and exact is not None:
            doubles = Run(name, exact, inputs.double().to(_device(exact)), keep)
        return recorded(name, doubles, singles, remarks)

    answers = QUESTIONS if exact is not None else frozenset[Question](("rounding",))
    return Candidate(
        name,
        record=record,
        answers=answers,
        rounded_weights=rounded,
        weights=weights,
        device=_device(single).type,
        modules=None if exact is None else (single, exact),
    )


def _device(model: nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def _as_handed_over(model: nn.Module) -> list[str]:
    """A remark on weights that are not float32, in which they are compared."""
    dtypes = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.is_floating_point()}
    other = sorted(dtypes - {"float32"})
    return [f"its weights are {' and '.join(other)}; compared as float32"] if other else []


def _in_float64(model: nn.Module, unrounded: dict[str, Tensor]) -> nn.Module | None:
    """A copy of ``model`` in float64; None where it cannot be copied or converted."""
    try:
        exact = copy.deepcopy(model).double()
    except Exception:  # it is somebody's code
        return None
    exact.load_state_dict(model.state_dict() | unrounded)
    return exact


def _unrounded_state(state: Mapping[str, np.ndarray], port: Port) -> tuple[dict[str, Tensor], StateDict | None]:
    """A module's ``state`` dict in float64, and the same by our names; empty and None if it is not that of a port."""
    stem = f"{nodes(port.network, classes=0)[0].layer}.weight"
    prefix = next((name.removesuffix(stem) for name in state if name.endswith(stem)), "")  # of a network inside another
    arrays = {name.removeprefix(prefix): values for name, values in state.items()}
    fitting = []
    for layout in LAYOUTS:
        try:
            found, changed = unrounded(Artifact(arrays, None), port, layout)
        except ArtifactError:  # another class, or another layout
            continue
        own = {prefix + name: tensor for name, tensor in found.items()}
        fitting.append((own, StateDict(arrays, layout, changed)))
    return min(fitting, key=lambda one: sum(one[1].changed.values()), default=({}, None))


def program(path: Path, sizes: Sequence[Size]) -> Candidate:
    """An ``.onnx`` or ``.pt2`` file in its own process, for images of ``sizes``; gives logits or predictions.

    Raises ParityError.
    """
    if not path.is_file():
        raise ParityError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}")
    files = [path, *(_weights_beside(path) if path.suffix == ".onnx" else ())]
    request = Request(path.suffix[1:], os.fsencode(path.absolute()), printable(str(path)), memory_for(files, sizes))
    runner = in_child(request)

    def record(images: np.ndarray, _questions: frozenset[Question], _keep: int) -> Recording:
        found = runner.run(images.astype("float32"), ())
        return Recording([(name, Output(None, values)) for name, (values, _) in found])

    answers = frozenset[Question](("rounding",))
    folder = path.parent.resolve()
    digests = {printable(os.path.relpath(file.resolve(), folder)): sha256(file) for file in files}
    return Candidate(str(path), record=record, answers=answers, size=runner.size, digests=digests)


def _weights_beside(path: Path) -> list[Path]:
    """The files in or below the folder of an ``.onnx`` that hold values of its tensors. Raises ParityError."""
    data, folder = path.read_bytes(), path.parent.resolve()
    names: set[bytes] = set()
    for found in LOCATION.finditer(data):
        low, *high = found[1]
        length = (low & 127) + (high[0] << 7 if high else 0)
        if length <= LONGEST_NAME:
            names.add(data[found.end() : found.end() + length])
        if len(names) > MOST["files"]:
            raise ParityError(f"{path}: names more than {MOST['files']:,} files of weights")
    files = {(folder / os.fsdecode(name)).resolve() for name in names if b"\0" not in name}
    return sorted(file for file in files if file.is_relative_to(folder) and os.path.isfile(file))  # noqa: PTH113 - any name


def tensorflow_source(path: str, mapping: PathLike | None) -> Candidate:
    """Another TensorFlow source: its own graph, or the interpreter of a ``.tflite``. Raises PorterError."""
    port = plan_port(path, PortOptions(mapping=mapping))
    reference = open_reference("auto", port)
    names, exact = endpoint_names(port.network, port.classes), reference.precision == "float64"

    def run(images: np.ndarray, _questions: frozenset[Question]) -> Outputs:
        for name, (values, noise) in reference.run(images.astype("float32"), names):
            yield name, Output(values, None, noise) if exact else Output(None, values)

    answers = QUESTIONS if exact else frozenset[Question](("rounding",))
    name = f"{path} ({reference.name})"
    return Candidate(name, run, answers=answers, size=reference.size, digests=port.checkpoint.digests())
