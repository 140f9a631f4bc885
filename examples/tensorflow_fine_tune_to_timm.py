"""Load a classifier that was fine-tuned in TensorFlow into timm's class, and compare the logits.

python examples/tensorflow_fine_tune_to_timm.py CHECKPOINT
"""

import sys

import timm
import torch

import porter

path, port = porter.convert(sys.argv[1], "ported.pth", force=True)
print(f"{path}: {port.mapping.variant}, {port.plan.num_classes} classes")

theirs = timm.create_model(port.mapping.timm, num_classes=port.plan.num_classes).eval()
theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
ours = porter.create_model(port.mapping.variant, path)

images = torch.rand(2, 3, 224, 224) * 2 - 1
with torch.no_grad():
    difference = (theirs(images) - ours(images)).abs().max() / ours(images).abs().max()
print(f"The logits of timm's class and of porter.create_model differ by {difference:.1e} of the logits' scale")
assert difference < 1e-5
