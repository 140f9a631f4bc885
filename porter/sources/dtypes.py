"""Values of a TensorProto (tensorflow/core/framework/tensor.proto), as frozen graphs and V1 checkpoints hold them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np


NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string",
    8: "complex64", 9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32",
    14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16", 18: "complex128", 19: "float16",
    20: "resource", 21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip
NUMBERS = {name: number for number, name in NAMES.items()}

# Bytes per element of the dtypes that can be read; int4 and uint4 take a byte each
ITEM_SIZES = {
    "float32": 4, "float64": 8, "int32": 4, "uint8": 1, "int16": 2, "int8": 1, "complex64": 8,
    "int64": 8, "bool": 1, "qint8": 1, "quint8": 1, "qint32": 4, "bfloat16": 2, "qint16": 2,
    "quint16": 2, "uint16": 2, "complex128": 16, "float16": 2, "uint32": 4, "uint64": 8,
    "float8_e5m2": 1, "float8_e4m3fn": 1, "int4": 1, "uint4": 1,
}  # fmt: skip

FLOATS = ("float32", "float64", "float16", "bfloat16")


def name_of(number: int) -> str:
    """TensorFlow's name of a dtype, or ``dtype 77`` if it is unknown here."""
    return NAMES.get(number) or f"dtype {number}"


def to_numpy(name: str) -> np.dtype:
    """The numpy dtype for TensorFlow's ``name``; quantised integers become plain integers."""
    import numpy as np

    if name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name.removeprefix("q") if name.startswith("q") else name)


# Fields of values that are not in tensor_content
_FIELDS = {
    "float32": "float_val", "float64": "double_val", "int32": "int_val", "int16": "int_val",
    "int8": "int_val", "uint8": "int_val", "uint16": "int_val", "int64": "int64_val", "bool": "bool_val",
    "float16": "half_val", "bfloat16": "half_val", "complex64": "scomplex_val", "complex128": "dcomplex_val",
}  # fmt: skip


def tensor_values(proto: Any, shape: tuple[int, ...], dtype: str, what: str, zeros: bool = False) -> np.ndarray:
    """The values of ``proto`` as an array of ``shape``. Without any they are ``zeros``, as in a graph's constants.

    Raises CheckpointError, beginning with ``what``, if their number does not fit.
    """
    import numpy as np

    if dtype not in _FIELDS:
        raise CheckpointError(f"{what}: {dtype} values cannot be read, only numbers")
    count, stored = math.prod(shape), to_numpy(dtype)
    if proto.tensor_content:
        content = proto.tensor_content
        if len(content) != count * stored.itemsize:
            raise CheckpointError(f"{what}: {len(content)} bytes for shape {shape} of {dtype}; the file is damaged")
        return np.frombuffer(content, stored.newbyteorder("<")).astype(stored, copy=False).reshape(shape)
    field = _FIELDS[dtype]
    listed = getattr(proto, field)
    if field == "half_val":  # the bit patterns of 16-bit floats
        values = np.array([value & 0xFFFF for value in listed], np.uint16).view(stored)
    elif field in ("scomplex_val", "dcomplex_val"):  # real and imaginary parts alternate
        values = np.array(listed[: len(listed) // 2 * 2], stored.type(0).real.dtype).view(stored)
    else:
        values = np.array(listed).astype(stored)
    if len(values) > count or (count and not len(values) and not zeros):
        raise CheckpointError(f"{what}: {len(values)} values for shape {shape}; the file is damaged")
    # A shorter list repeats its last value; Tensor::FromProto of TensorFlow takes an empty one as zeros
    if not len(values):
        return np.zeros(shape, stored)
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))]).reshape(shape)


def as_float32(value: float) -> float:
    """What float32 rounds ``value`` to."""
    import numpy as np

    return float(np.float32(value))


def as_decimal(value: float) -> float:
    """The shortest decimal that float32 rounds to ``value``: what was written in the code."""
    import numpy as np

    return float(np.format_float_positional(np.float32(value), unique=True, trim="0"))
