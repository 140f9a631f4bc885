"""Networks of random weights whose batch norms do something, images for them, and how far results lie apart."""

import numpy as np
import torch

import porter


def trained(variant, **options):
    """A model whose batch norms do something."""
    torch.manual_seed(0)
    model = porter.create_model(variant, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def images(batch, height, width, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (batch, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def furthest(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())
