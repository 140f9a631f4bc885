"""Readers of TensorFlow's weight files: ``open_checkpoint(path)`` gives name -> lazily read variable.

Each is imported on first use: the process that reads an HDF5 file needs none of the other readers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from porter.sources.checkpoint import Checkpoint, open_checkpoint
    from porter.sources.variable import Variable

__all__ = ["Checkpoint", "Variable", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"porter.sources.{'variable' if name == 'Variable' else 'checkpoint'}"), name)
    raise AttributeError(f"module 'porter.sources' has no attribute {name!r}")
