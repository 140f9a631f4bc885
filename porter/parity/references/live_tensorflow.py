"""The one place that imports TensorFlow."""

from __future__ import annotations

import os
from typing import Any

from porter.errors import ParityError


def tensorflow() -> Any:
    """The tensorflow module, its start-up chatter silenced. Raises ParityError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ParityError(
            "this reference needs TensorFlow: pip install 'mnv3-port[tensorflow]', or give --reference FILE.npz"
        ) from error
    return tf
