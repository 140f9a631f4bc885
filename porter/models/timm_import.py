"""timm and its models, even if torchvision fails to import, as it does without a build for this torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from porter.artifacts.artifact import load_artifact
from porter.errors import PorterError


def import_timm() -> Any:
    """The timm module. Raises ImportError or RuntimeError where it cannot be imported."""
    try:
        import timm
    except RuntimeError:
        # torchvision's compiled operators are missing; timm needs none of them, their names are enough
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", signature)
        import timm
    return timm


def timm_model(name: str, weights_file: Path | None = None) -> Any:
    """timm's model ``name`` with the state dict ``weights_file`` (strict), or its own weights. Raises PorterError."""
    try:
        timm = import_timm()
    except (ImportError, RuntimeError) as error:
        raise PorterError(f"timm:{name}: timm cannot be imported ({error})") from error
    try:
        model = timm.create_model(name, pretrained=weights_file is None)
        if weights_file is not None:
            model.load_state_dict(load_artifact(weights_file).tensors, strict=True)
    except PorterError:
        raise
    except Exception as error:  # unknown names, hubs out of reach, files that do not fit
        reason = " ".join(str(error).split())
        raise PorterError(f"timm:{name}: timm cannot make it ({reason[:200]})") from error
    return model
