"""Judge somebody else's port: does it compute what TensorFlow computed, and if not, where does it start to differ?

python examples/judge_a_port.py CHECKPOINT PORT [WEIGHTS]

PORT is anything that `mnv3-port verify` takes: a state dict, timm:NAME with WEIGHTS, an .onnx, or file.py:callable.
"""

import sys

import porter

checkpoint, port, *weights = sys.argv[1:]
verdict = porter.verify(checkpoint, port, weights_file=weights[0] if weights else None)
print("parity" if verdict.passed else "no parity", verdict.sentence(), sep=": ")

first = verdict.first_divergence()
if first is not None:
    print(f"first differs at {first.endpoint}, by {first.distance:.1e} of its scale, on {first.sample}")
for cause in verdict.causes:
    print(f"cause: {cause.what}")
