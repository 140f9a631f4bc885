"""Port DeepLab's LR-ASPP, and write a mask for each photo of a folder.

python examples/segment_photos.py CHECKPOINT PHOTOS
"""

import sys
from pathlib import Path

import porter

source, photos = sys.argv[1:]
path, port = porter.convert(source, "segmenter.pth", force=True)
print(f"{path}: {port.mapping.variant}, {port.plan.num_classes} classes")

for photo, found in porter.predict(path, photos):
    name = Path(photo).with_suffix(".mask.png").name
    found.mask.save(name)  # with a palette; the pixels are the numbers of classes
    largest = found.rows[0]
    print(f"{name}: {largest.value:.0%} of the pixels are class {largest.number} {largest.name}")

# For training, or for a pipeline of your own: (N, 3, H, W) -> logits (N, classes, H, W)
model = porter.create_model(path)
print(sum(parameter.numel() for parameter in model.parameters()), "parameters")
