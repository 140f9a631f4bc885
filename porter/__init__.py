"""Exact ports of TF/Models MobileNetV3 checkpoints to PyTorch.

``convert`` writes an artifact, ``create_model`` builds the network and loads one, ``deploy`` and ``fold`` make it fast,
``optimizer_state`` continues a training run, ``verify`` proves parity, ``predict`` and ``evaluate`` run one on photos,
``inspect`` says what is in a file, ``release`` writes a folder to publish, ``open_checkpoint`` reads TensorFlow's
files, ``export_tf`` writes one from an artifact, ``list_variants`` names what can be ported, ``PorterError`` is what
all of them raise. Each is imported on first use, so that reading a checkpoint needs neither torch nor tensorflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the aliases tell type checkers that these names are public
    from porter.errors import PorterError as PorterError
    from porter.evaluation.evaluate import evaluate as evaluate
    from porter.exports.convert import convert as convert
    from porter.exports.deploy import deploy as deploy
    from porter.exports.export_tf import export_tf as export_tf
    from porter.mapping.files import list_variants as list_variants
    from porter.models.create import create_model as create_model
    from porter.models.fold import fold as fold
    from porter.models.optimizer import optimizer_state as optimizer_state
    from porter.parity.verify import verify as verify
    from porter.prediction.predictor import predict as predict
    from porter.releases.publish import release as release
    from porter.report.inspection import inspect as inspect
    from porter.sources import open_checkpoint as open_checkpoint

    __version__: str

_HOMES = {
    "PorterError": "porter.errors",
    "list_variants": "porter.mapping.files",
    "convert": "porter.exports.convert",
    "create_model": "porter.models.create",
    "fold": "porter.models.fold",
    "deploy": "porter.exports.deploy",
    "evaluate": "porter.evaluation.evaluate",
    "export_tf": "porter.exports.export_tf",
    "inspect": "porter.report.inspection",
    "predict": "porter.prediction.predictor",
    "release": "porter.releases.publish",
    "open_checkpoint": "porter.sources",
    "optimizer_state": "porter.models.optimizer",
    "verify": "porter.parity.verify",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mnv3-port")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'porter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
