"""Readers of TensorFlow's weight files: ``open_checkpoint(path)`` gives name -> lazily read variable."""

from porter.sources.checkpoint import Checkpoint, open_checkpoint
from porter.sources.variable import Variable

__all__ = ["Checkpoint", "Variable", "open_checkpoint"]
