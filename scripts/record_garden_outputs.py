"""Record what TF Model Garden's own code makes of the demo's weights: tests/data/garden/*.npz.

Needs `pip install --no-deps tf-models-official` (2.21 was used) in an environment with TensorFlow. Its other imports
(datasets, text, OpenCV) are not used by the network, and are replaced by empty modules.

.venv/bin/python scripts/record_garden_outputs.py
"""

import importlib.abc
import importlib.util
import os
import sys
import types
from pathlib import Path

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np
import tensorflow as tf

from porter.mapping.files import load_variant
from porter.mapping.rules import expected_variables
from porter.network.network import build_network
from porter.parity.demo import demo_variables

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "garden"
MODELS = {"small_100": "MobileNetV3Small", "large_100": "MobileNetV3Large", "edgetpu_100": "MobileNetV3EdgeTPU"}
NOT_NEEDED = ("tensorflow_datasets", "tensorflow_model_optimization", "tensorflow_text", "tf_slim", "cv2", "orbit")
SIZE = (65, 48)


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives modules in which every name is an empty class."""

    def find_spec(self, name, _path=None, _target=None):
        """A module for what is not needed."""
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] in NOT_NEEDED else None

    def create_module(self, spec):
        """The empty module."""
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: type(name, (), {})
        return module

    def exec_module(self, module):
        """Nothing to run."""


def backbones():
    """The module that builds networks, without those packages whose ``__init__`` imports everything."""
    sys.meta_path.insert(0, Empty())
    root = Path(importlib.util.find_spec("official").submodule_search_locations[0])
    for name in ("official.core", "official.vision", "official.vision.modeling", "official.vision.modeling.backbones"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from official.vision.modeling.backbones import mobilenet

    return mobilenet


def main():
    """Build, fill, run and record each."""
    FOLDER.mkdir(exist_ok=True)
    mobilenet = backbones()
    images = np.random.default_rng(0).uniform(-1, 1, (1, *SIZE, 3)).astype(np.float32)
    for variant, model_id in MODELS.items():
        values = demo_variables(variant)
        sources = {}
        for names in ("slim", "garden"):
            mapping = load_variant(variant, names)
            for want in expected_variables(mapping, build_network(mapping), classes=0):
                sources.setdefault(want.target, []).append(want.source)
        network = mobilenet.MobileNet(
            model_id=model_id, input_specs=tf.keras.layers.InputSpec(shape=[None, None, None, 3])
        )
        checkpoint = tf.train.Checkpoint(backbone=network)
        prefix = checkpoint.write(str(FOLDER / "temporary"))
        keys = {
            f"{theirs}/.ATTRIBUTES/VARIABLE_VALUE": ours for ours, theirs in (s for s in sources.values() if len(s) > 1)
        }
        reader = tf.train.load_checkpoint(prefix)
        stored = {name for name in reader.get_variable_to_shape_map() if "layer_with_weights" in name}
        assert stored == set(keys), stored ^ set(keys)
        for layer, made in _variables(network).items():
            made.assign(values[keys[f"backbone/{layer}/.ATTRIBUTES/VARIABLE_VALUE"]].reshape(made.shape))
        outputs = {name: value.numpy() for name, value in network(images).items()}
        np.savez_compressed(FOLDER / f"{variant}.npz", images=images, **outputs)
        for path in FOLDER.glob("temporary*"):
            path.unlink()
        print(variant, {name: value.shape for name, value in outputs.items()})


def _variables(network):
    """Path below the backbone -> variable."""
    found = {}
    layers = [layer for layer in network.layers if layer.weights]
    for number, layer in enumerate(layers):
        for name in ("_conv0", "_conv1", "_conv2", "_norm0", "_norm1", "_norm2"):
            for variable in getattr(getattr(layer, name, None), "variables", ()):
                found[f"layer_with_weights-{number}/{name}/{variable.name.split('/')[-1].split(':')[0]}"] = variable
        excite = getattr(layer, "_squeeze_excitation", None)
        for name in ("_se_reduce", "_se_expand"):
            for variable in getattr(getattr(excite, name, None), "variables", ()):
                last = variable.name.split("/")[-1].split(":")[0]
                found[f"layer_with_weights-{number}/_squeeze_excitation/{name}/{last}"] = variable
    return found


if __name__ == "__main__":
    main()
