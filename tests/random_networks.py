"""Networks of random weights whose batch norms do something, images for them, and how far results lie apart."""

import numpy as np
import torch

import porter
from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.sources.bundle_writer import write_bundle


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


def checkpoint_with_head(variant, tmp_path_factory, classes=6):
    """The prefix of a checkpoint of random weights; a detector's classes count the background."""
    mapping = load_variant(variant)
    random = np.random.default_rng(0)
    values = {}
    for want in expected_variables(mapping, build_network(mapping), classes):
        spread = random.normal(0, 0.1, want.shape) if len(want.shape) == 4 else random.uniform(0.5, 1, want.shape)
        values[want.source] = spread.astype(np.float32)
    prefix = tmp_path_factory.mktemp(variant) / "model-7"
    write_bundle(prefix, values)
    return prefix
