"""Values of a TensorProto (tensorflow/core/framework/tensor.proto), as frozen graphs and V1 checkpoints hold them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from porter.errors import CheckpointError
from porter.formats import dtypes

if TYPE_CHECKING:
    import numpy as np

# Where values lie that are not in tensor_content.
_FIELDS = {
    "float32": "float_val", "float64": "double_val", "int32": "int_val", "int16": "int_val",
    "int8": "int_val", "uint8": "int_val", "uint16": "int_val", "int64": "int64_val", "bool": "bool_val",
    "float16": "half_val", "bfloat16": "half_val", "complex64": "scomplex_val", "complex128": "dcomplex_val",
}  # fmt: skip


def tensor_values(proto: Any, shape: tuple[int, ...], dtype: str, what: str) -> np.ndarray:
    """The values of ``proto`` as an array of ``shape``.

    Raises CheckpointError, beginning with ``what``, when their number does not fit.
    """
    import numpy as np

    if dtype not in _FIELDS:
        raise CheckpointError(f"{what}: {dtype} values cannot be read, only numbers")
    count, stored = math.prod(shape), dtypes.to_numpy(dtype)
    if proto.tensor_content:
        content = proto.tensor_content
        if len(content) != count * stored.itemsize:
            raise CheckpointError(f"{what}: {len(content)} bytes for shape {shape} of {dtype}; the file is damaged")
        return np.frombuffer(content, stored.newbyteorder("<")).astype(stored, copy=False).reshape(shape)
    field = _FIELDS[dtype]
    listed = getattr(proto, field)
    if field == "half_val":  # the bit patterns of 16-bit floats
        values = np.array([value & 0xFFFF for value in listed], np.uint16).view(stored)
    elif field in ("scomplex_val", "dcomplex_val"):  # real and imaginary parts in turn
        values = np.array(listed[: len(listed) // 2 * 2], stored.type(0).real.dtype).view(stored)
    else:
        values = np.array(listed).astype(stored)
    if len(values) > count or (count and not len(values)):
        raise CheckpointError(f"{what}: {len(values)} values for shape {shape}; the file is damaged")
    # A shorter list means that its last value repeats.
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))]).reshape(shape)
