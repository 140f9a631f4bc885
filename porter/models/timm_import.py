"""Importing timm even if torchvision fails to import, as it does without a build for this torch."""

from __future__ import annotations

from typing import Any

import torch


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
