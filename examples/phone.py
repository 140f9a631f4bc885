"""Write a .tflite for a phone, and run it as an app does: from a photo to its classes.

python examples/phone.py CHECKPOINT PHOTO

For ExecuTorch, `mnv3-port release CHECKPOINT --out FOLDER --pte` writes a .pte.
It takes the same numbers, as (1, 3, H, W).
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

import porter

path, port = porter.convert(sys.argv[1], "phone.tflite", force=True)
spec = port.mapping.input

# What the app has to do. The shorter side becomes size / crop pixels, and the central square is taken
photo = Image.open(sys.argv[2]).convert("RGB")
scale = int(spec.size / spec.crop) / min(photo.size)
photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BILINEAR)
left, top = ((side - spec.size) // 2 for side in photo.size)
pixels = np.asarray(photo.crop((left, top, left + spec.size, top + spec.size)), np.float32)

# RGB from 0 to 255 becomes [-1, 1]: mean and std are 0.5
image = (pixels / 255 - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)

interpreter = Interpreter(str(path))
interpreter.allocate_tensors()
[given], [found] = interpreter.get_input_details(), interpreter.get_output_details()
interpreter.set_tensor(given["index"], image[None])
interpreter.invoke()
logits = interpreter.get_tensor(found["index"])[0]
chances = np.exp(logits - logits.max())
chances /= chances.sum()
for number in chances.argsort()[::-1][:5]:
    print(f"{chances[number]:7.2%}  class {number}")
