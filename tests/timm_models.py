"""timm on a CPU-only torch: torchvision's compiled operators are missing there, their names are enough."""

import torch


def import_timm():
    """The timm module. Raises ImportError where it is not installed."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm
