"""``optimizer_state``: an optimizer that continues where TensorFlow's left a training checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from porter.errors import ArtifactError, CheckpointError
from porter.mapping.apply import carry_out
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.models.build import Whole
from porter.network.network import TIMM_GATE
from porter.port import plan_port

# Slots of tf.train.RMSPropOptimizer, which TensorFlow numbers: PyTorch's word, and the power of the gate fold in them.
# Folded weights are s times TensorFlow's, so their gradients are 1 / s of TensorFlow's, and their updates s times
SLOTS = {"RMSProp": ("square_avg", -2), "RMSProp_1": ("momentum_buffer", 1)}


def optimizer_state(
    checkpoint: PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    variant: str | None = None,
    mapping: PathLike | None = None,
) -> dict[str, Any]:
    """The RMSProp slots of a training checkpoint, as a state dict that ``optimizer`` loads.

    Args:
        checkpoint: What ``open_checkpoint`` takes; a training checkpoint, such as a release's ``pristine/``.
        model: A port of it. A new classifier has no slots, and starts without state.
        optimizer: ``timm.optim.RMSpropTF``, over parameters of ``model`` in any order and groups.
        variant: If None, found from the shapes.
        mapping: Your own mapping file.

    Returns:
        ``optimizer.state_dict()`` with the slots as state, and the checkpoint's step.

    Raises:
        PorterError: If the checkpoint has no slots, or is not the model's.

    Example:
        docs/fine-tuning.md continues a run with timm's RMSpropTF.
    """
    if not isinstance(model, Whole):
        raise ArtifactError(f"optimizer_state: takes a whole model of create_model's, not a {type(model).__name__}")
    if not type(optimizer).__name__.startswith("RMSprop") or optimizer.defaults.get("centered"):
        raise ArtifactError("optimizer_state: the slots are of RMSProp, not centered; use timm.optim.RMSpropTF")
    layout: ArtifactLayout = "timm" if model.network.gate == TIMM_GATE else "slim"
    port = plan_port(checkpoint, PortOptions(variant, mapping, layout=layout, fake_quant=False))
    if model.num_classes == port.classes:
        port = plan_port(port.checkpoint, PortOptions(variant, mapping, layout=layout, keep_background=True))
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, nn.Parameter)}
    steps = [step for step in port.plan.steps if step.target in own]
    other = [step.target for step in steps if own[step.target].shape != step.target_shape]
    if len(steps) < len(own) or any(name.rpartition(".")[0] not in port.network.class_layers for name in other):
        raise ArtifactError(f"{port.checkpoint.given}: is not a checkpoint of this model")
    slots: dict[str, dict[str, Tensor]] = {}
    for slot, (key, power) in SLOTS.items():
        held = [
            replace(step, source=f"{step.source}/{slot}", scale=step.scale**power, shift=0.0)
            for step in steps
            if f"{step.source}/{slot}" in port.checkpoint and step.target not in other
        ]
        plan = replace(port.plan, steps=tuple(held), targets=tuple(step.target for step in held), constants={})
        for name, values in carry_out(plan, port.checkpoint).arrays.items():
            slots.setdefault(name, {})[key] = torch.from_numpy(values)
    if not slots:
        raise CheckpointError(
            f"{port.checkpoint.given}: holds no slots of RMSProp; use a training checkpoint, such as pristine/"
        )
    step = port.checkpoint.get("global_step")
    count = port.checkpoint.step or 0 if step is None else int(step.read())
    names = {value: name for name, value in own.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = optimizer.state_dict()
    found["state"] = {
        number: {"step": torch.tensor(float(count)), **slots[names[parameter]]}
        for number, parameter in enumerate(parameters)
        if names.get(parameter) in slots
    }
    if not found["state"]:
        raise ArtifactError("optimizer_state: none of the optimizer's parameters with slots is the model's")
    return found
