"""The one place that imports TensorFlow, and TensorFlow's own reader of checkpoints."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from porter.errors import ParityError
from porter.sources import Checkpoint

OR_RECORDED = ", or give a recorded reference (.npz)"


def tensorflow(otherwise: str = OR_RECORDED) -> Any:
    """The tensorflow module, without its start-up messages. Raises ParityError if it is not installed.

    ``otherwise`` ends the message: what else to do.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ParityError(
            f"this comparison needs TensorFlow: pip install 'mnv3-port[tensorflow]'{otherwise}"
        ) from error
    return tf


def stored_values(checkpoint: Checkpoint) -> Callable[[str], np.ndarray]:
    """A reader of variables by plain name; TensorFlow's own where it can read the file."""
    if checkpoint.format == "bundle":
        reader = tensorflow().train.load_checkpoint(str(checkpoint.path))
        return lambda name: reader.get_tensor(checkpoint[name].stored_as)
    return lambda name: checkpoint[name].read()


def reason(error: Exception) -> str:
    """``error`` in one line: the first, or the one behind the name of the node that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    node = next((number for number, line in enumerate(lines[:-1]) if line.startswith("Node:")), -1)
    return lines[node + 1]


def tflite_package() -> tuple[Any, Any]:
    """The modules of the interpreter and of the ``.tflite`` schema: LiteRT's, or TensorFlow's. Raises ParityError."""
    try:
        from ai_edge_litert import interpreter, schema_py_generated
    except ImportError:
        if importlib.util.find_spec("tensorflow") is None:
            raise ParityError(f"this comparison needs LiteRT: pip install 'mnv3-port[tflite]'{OR_RECORDED}") from None
        interpreter = tensorflow().lite
        from tensorflow.lite.python import schema_py_generated

        interpreter.OpResolverType = interpreter.experimental.OpResolverType
    return interpreter, schema_py_generated
