"""Port a Keras MobileNetV3 that was fine-tuned with a head of its own, and compare it with Keras.

python examples/keras_with_own_head.py [MODEL.keras]

Without a file, it makes such a model: untrained, with pooling and two dense layers behind the backbone.
"""

import sys

import keras
import numpy as np
import torch

import porter

if len(sys.argv) > 1:
    file = sys.argv[1]
else:
    file = "flowers.keras"
    backbone = keras.applications.MobileNetV3Small((96, 96, 3), include_top=False, weights=None)
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = keras.layers.Dense(32, activation="relu")(x)
    keras.Model(backbone.input, keras.layers.Dense(5, activation="softmax")(x)).save(file)

# Scaling, pooling and layers of the head are read from the file
path, port = porter.convert(file, "flowers.pth", force=True)
size, spec = port.mapping.input.size, port.mapping.input
print(f"{path}: {port.mapping.variant}, {port.plan.num_classes} classes, images of {size}x{size}")

# Keras takes pixels from 0 to 255, as its model rescales them; PyTorch takes them normalised
pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.float32)
theirs = keras.models.load_model(file, compile=False).predict(pixels, verbose=0)
images = (pixels / 255 - spec.mean) / spec.std
with torch.no_grad():
    ours = porter.create_model(path)(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)).softmax(1)
print(f"probabilities differ by {np.abs(ours.numpy() - theirs).max():.1e}")
assert np.allclose(ours.numpy(), theirs, atol=1e-5)
