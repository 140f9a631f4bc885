"""Other people's MobileNetV3 with a checkpoint's weights, for scripts/conformance.py: callables without arguments.

The environment variable ``CONFORMANCE`` names the folder that conformance.py has prepared. It holds ``plain.pth`` (the
weights renamed, nothing folded), ``port.json`` (the variant) and ``logits.onnx`` (the frozen graph by tf2onnx).
"""

import json
import os
from pathlib import Path

import torch

from porter.artifacts.artifact import load_artifact
from porter.models.timm_import import import_timm

FOLDER = Path(os.environ.get("CONFORMANCE", "."))


def plain_weights() -> dict[str, torch.Tensor]:
    """Entry -> values, in the order of computation, under timm's names."""
    return load_artifact(FOLDER / "plain.pth").tensors


def timm_other() -> torch.nn.Module:
    """timm's class for weights that were trained in PyTorch, with the same shapes (``mobilenetv3_small_100``)."""
    variant = json.loads((FOLDER / "port.json").read_text())["variant"]
    model = import_timm().create_model(f"mobilenetv3_{variant}")
    model.load_state_dict(plain_weights(), strict=True)
    return model


def torchvision_class() -> torch.nn.Module:
    """torchvision's ``mobilenet_v3_small`` or ``_large``: the same layers in the same order."""
    import_timm()  # which makes torchvision importable without its compiled operators
    from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

    variant = json.loads((FOLDER / "port.json").read_text())["variant"]
    model = (mobilenet_v3_small if variant.startswith("small") else mobilenet_v3_large)(weights=None)
    theirs = [(n, v) for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")]
    ours = [v for n, v in plain_weights().items() if not n.endswith("num_batches_tracked")]
    state = {name: value.reshape(own.shape) for (name, own), value in zip(theirs, ours, strict=True)}
    model.load_state_dict(state, strict=False)
    return model


class OnnxToTorch(torch.nn.Module):
    """onnx2torch's module of the NHWC graph."""

    def __init__(self) -> None:
        super().__init__()
        import_timm()  # onnx2torch wants torchvision as well
        import onnx2torch

        self.converted = onnx2torch.convert(str(FOLDER / "logits.onnx"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        return self.converted(x.permute(0, 2, 3, 1))
