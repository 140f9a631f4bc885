"""A checkpoint of quantisation-aware training, under tf.contrib.quantize's names."""

import numpy as np
import torch

from porter.mapping.apply import carry_out
from porter.mapping.options import PortOptions
from porter.mapping.rules import module_outputs
from porter.models.mobilenet_v3 import MobileNetV3
from porter.parity.demo import demo_variables
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

VARIANT = "small_075"


def write_quantized(folder):
    """Write demo weights and the ranges that an image leaves; the prefix. The weights alone are beside it: ``float``."""
    variables = demo_variables(VARIANT, classes=21)
    write_bundle(folder / "float", variables)
    port = plan_port(folder / "float", PortOptions(layout="slim", fold_bn=True))
    tensors = carry_out(port.plan, port.checkpoint).arrays
    model = MobileNetV3(port.target_network, 21).eval()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    ranges = {}
    for at, (name, *_) in module_outputs(port.mapping, port.network, 21).items():
        if at == "input":
            ranges[name] = (-1.0, 1.0)
        elif at.endswith(".weight"):
            ranges[name] = (min(tensors[at].min(), 0), max(tensors[at].max(), 0))
        else:

            def record(_module, _args, out, name=name):
                ranges[name] = (min(float(out.min()), -1e-3), max(float(out.max()), 1e-3))

            model.get_submodule(at).register_forward_hook(record)
    with torch.no_grad():
        model(torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype("f")))
    for name, limits in ranges.items():
        for end, value in zip(("min", "max"), limits, strict=True):
            variables[f"{name}/{end}"] = np.array(value, np.float32)
    write_bundle(folder / "model-1", variables)
    return folder / "model-1"
