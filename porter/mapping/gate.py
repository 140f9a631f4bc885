"""Folding the squeeze-excite constant of one definition into weights for another, and back exactly.

slim's gate is ``relu6(x + 3) * 0.16667``, timm's ``relu6(x + 3) / 6``. The gate scales the input of the linear
``project`` convolution, so scaling its weights by ``0.16667 / (1/6)`` makes up for the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GATE_ROUNDING = 1e-7  # tolerance of a gate that was rounded to float32
GATE_IN_16_BITS = 2.0**-8  # and of one stored in 16 bits: bfloat16 rounds by up to 2^-9
GATE_SHIFT = 3.0  # of relu6(x + 3)


def fold(values: np.ndarray, ratio: float) -> tuple[np.ndarray, list[int]]:
    """``values * ratio`` in the dtype of ``values``, and the flat positions that ``unfold`` must nudge.

    Rounding to float32 can map two neighbours to one value. Each nudge is ``2 * position + up``: the original is one
    float above (``up`` 1) or below the result of the division.
    """
    import numpy as np

    folded = (values * np.float64(ratio)).astype(values.dtype)
    back = _divide(folded, ratio).ravel()
    original = np.ascontiguousarray(values).ravel()
    positions = np.flatnonzero(back != original)
    nudges = [int(2 * p + (original[p] > back[p])) for p in positions]
    return folded, nudges


def unfold(folded: np.ndarray, ratio: float, nudges: list[int]) -> np.ndarray:
    """The values that ``fold`` was given, bit for bit. Raises ValueError for nudges of positions that are not there."""
    import numpy as np

    values = _divide(folded, ratio)
    flat = values.reshape(-1)
    if nudges and not 0 <= min(nudges) <= max(nudges) < 2 * flat.size:
        raise ValueError(f"fold_nudges beyond its {flat.size} values")
    for nudge in nudges:
        position, up = divmod(nudge, 2)
        flat[position] = np.nextafter(flat[position], flat.dtype.type(np.inf if up else -np.inf))
    return values


def _divide(folded: np.ndarray, ratio: float) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray((folded / np.float64(ratio)).astype(folded.dtype))
