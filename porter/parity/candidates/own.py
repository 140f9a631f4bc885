"""Our own network as the candidate: what ``convert`` would write, or an artifact of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from porter.artifacts.artifact import Artifact, ArtifactFile, load_artifact
from porter.artifacts.variant import class_count, network_as_stored
from porter.errors import ArtifactError
from porter.exports.deploy import Deployed, deploy
from porter.mapping.apply import carry_out
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.mapping.plan import Plan
from porter.models.build import Whole, build_model, capture, nhwc, probabilities
from porter.models.create import OpenedModel, open_model
from porter.network.network import GATE_ENTRY, TIMM_GATE
from porter.network.nodes import is_weight, nodes
from porter.parity.candidates.candidate import Candidate, Output, Outputs, Question, StateDict
from porter.parity.streams import streamed
from porter.port import Port, plan_opened

# Folding a constant rounds a float32 weight once more: an error of half a unit in the last place, or a whole unit if it
# was rounded twice
ROUNDED = 2.0**-23
SMALLEST = 2.0**-149  # of float32


def converted(port: Port) -> Candidate:
    """The port in memory, as ``convert`` would write it."""
    return in_both_precisions("", ported_model(port, "float32"), ported_model(port, "float64"))


def artifact(file: ArtifactFile, port: Port, mapping: PathLike | None) -> Candidate:
    """The artifact ``file``, whose weights should be those of ``port``'s checkpoint.

    Float64 uses the checkpoint's own weights where the artifact's equal them rounded to float32 (folding the gate or
    batch norms rounds). That rounding counts as float32 error. Raises ArtifactError if the artifact does not fit.
    """
    stored = load_artifact(file)
    layout: ArtifactLayout = "timm" if stored.gate == TIMM_GATE else "slim"
    exact_tensors, changed = unrounded(stored, port, layout)
    if stored.metadata is None:  # it does not say what its source states of the network, such as a pooling window
        network = network_as_stored(port.network, stored.arrays, None, stored.gate)
        single = build_model(network, class_count(stored.arrays)).eval()
        single.load_state_dict(stored.tensors, strict=False)  # its entries and shapes were checked
    else:
        single = open_model(file, PortOptions(port.mapping.variant, mapping, fake_quant=False), layout).whole
    exact = build_model(single.network, single.num_classes).double()
    exact.load_state_dict(single.state_dict() | exact_tensors)
    found = in_both_precisions(file.given, single, exact.eval())
    weights = StateDict(stored.arrays, layout, changed)
    return replace(found, changed=tuple(changed), digests=file.digests, weights=weights)


def recorded_artifact(opened: OpenedModel, file: ArtifactFile) -> Candidate:
    """The artifact ``file`` without its source. Folded batch norms stay rounded."""
    if opened.fake_quant:
        return quantised(opened, file.given)
    single, exact = opened.whole, open_model(file, layout="slim").whole
    found = in_both_precisions(file.given, single, exact.double())
    return replace(found, rounded_weights=single.network.bn_folded, digests=opened.digests)


def quantised(opened: OpenedModel, named: PathLike | None) -> Candidate:
    """A model with fake quantisation, which computes levels. ``named`` is the artifact, None for a port."""
    model = opened.whole

    def run(images: np.ndarray, _questions: frozenset[Question]) -> Outputs:
        for endpoint, tensor in streamed(_computation(model, images)):
            yield endpoint, Output(nhwc(tensor), None)

    digests = {} if named is None else opened.digests
    name = "" if named is None else str(named)
    return Candidate(name, run, answers=frozenset(("function",)), model=model, digests=digests)


def deployed(candidate: Candidate) -> Candidate:
    """``candidate`` with float32 computed by the inference form; every endpoint is an output of its graph."""
    model = candidate.model
    assert model is not None

    def run(images: np.ndarray, questions: frozenset[Question]) -> Outputs:
        fast = deploy(model, (images.shape[1], images.shape[2]))
        assert isinstance(fast, Deployed)
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
        singles = fast.endpoints(inputs)
        if "Logits" in singles:  # the graph that users run has one output, and fuses differently
            singles["Logits"] = fast(inputs).numpy()
            singles["Predictions"] = probabilities(model.network, torch.from_numpy(singles["Logits"])).numpy()
        for name, output in candidate.run(images, questions):
            yield name, output._replace(single=nhwc(torch.from_numpy(singles[name])))

    return replace(candidate, name=f"{candidate.name or 'the port'}, deployed", run=run, deployed=True)


def ported_model(port: Port, dtype: Any) -> Whole:
    """The port in memory, as ``convert`` would write it, in ``dtype`` (float32 or float64) and eval mode."""
    model = build_model(port.target_network, port.plan.num_classes).to(getattr(torch, dtype))
    tensors = carry_out(port.plan, port.checkpoint, dtype).arrays
    model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return model.eval()


def in_both_precisions(name: str, single: Whole, exact: Whole) -> Candidate:
    """A candidate that runs ``single`` (float32) and ``exact`` (float64) side by side."""

    def run(images: np.ndarray, questions: frozenset[Question]) -> Outputs:
        runs: dict[Question, Whole] = {"function": exact, "rounding": single}
        streams = {
            question: streamed(_computation(runs[question], images)) for question in runs if question in questions
        }
        for together in zip(*streams.values(), strict=True):
            outputs = {question: nhwc(tensor) for question, (_, tensor) in zip(streams, together, strict=True)}
            yield together[0][0], Output(outputs.get("function"), outputs.get("rounding"))

    return Candidate(name, run, model=single, modules=(single, exact))


def unrounded(artifact: Artifact, port: Port, layout: ArtifactLayout) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The state dict of ``artifact`` in float64, and the entries that differ from the checkpoint's in ``layout``.

    With each, the share of its values that differ.

    Entries that equal the checkpoint's values rounded to float32 get the unrounded values. Raises ArtifactError if
    entries are missing or have other shapes.
    """
    planned = carry_out(plan_like(artifact.arrays, port, layout), port.checkpoint, "float64").arrays
    _refuse_others(artifact.arrays, planned)
    tensors: dict[str, Tensor] = {}
    changed: dict[str, float] = {}
    for name, ours in planned.items():
        if name == GATE_ENTRY:  # a class may have the weights without the gate
            continue
        if name not in artifact.arrays or not np.issubdtype(ours.dtype, np.floating):  # batch counters
            tensors[name] = torch.from_numpy(artifact.arrays.get(name, ours))
            continue
        theirs = artifact.arrays[name].astype(np.float64)
        same = np.abs(theirs - ours) <= ROUNDED * np.abs(ours) + SMALLEST
        if not same.all():
            changed[name] = 1 - float(same.mean())
        tensors[name] = torch.from_numpy(np.where(same, ours, theirs))
    return tensors, changed


def plan_like(arrays: Mapping[str, np.ndarray], port: Port, layout: ArtifactLayout) -> Plan:
    """The plan for the classes of a state dict; folds batch norms if it has none."""
    classes = class_count(arrays)
    fold_bn = f"{nodes(port.network, classes=0)[0].layer}.bias" in arrays
    background = classes == port.classes
    options = PortOptions(layout=layout, keep_background=background, fold_bn=fold_bn, fake_quant=False)
    return plan_opened(port.checkpoint, port.mapping, options).plan


def _refuse_others(found: Mapping[str, np.ndarray], planned: Mapping[str, np.ndarray]) -> None:
    problems = [f"{n}: missing" for n in planned if n not in found and is_weight(n)]
    problems += [f"{n}: the checkpoint has no such entry" for n in found if n not in planned]
    problems += [
        f"{n}: shape {list(found[n].shape)}, the checkpoint gives {list(values.shape)}"
        for n, values in planned.items()
        if n in found and tuple(found[n].shape) != values.shape
    ]
    if problems:
        raise ArtifactError(f"the artifact is not a port of the checkpoint ({len(problems)} problems):", problems[:20])


def _computation(model: Whole, images: np.ndarray) -> Callable[[Callable[[tuple[str, Tensor]], None]], None]:
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    weight = next(model.parameters())

    def produce(give: Callable[[tuple[str, Tensor]], None]) -> None:
        with torch.no_grad(), capture(model, lambda name, tensor: give((name, tensor))):
            model(inputs.to(weight.device, weight.dtype))

    return produce
