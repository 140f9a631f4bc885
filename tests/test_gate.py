"""The gate fold: a float32 rounding at most, and undone bit for bit."""

import numpy as np
from conftest import same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from porter.mapping.gate import fold, unfold
from porter.network.network import TIMM_GATE

SLIM_RATIO = 0.16667 / TIMM_GATE
normal = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=6), elements=normal)


@given(arrays, st.sampled_from([SLIM_RATIO, 1 / SLIM_RATIO, 1.25]))
def test_fold_and_back(values, ratio):
    folded, nudges = fold(values, ratio)
    np.testing.assert_allclose(folded, values.astype("d") * ratio, rtol=6e-8)
    assert same_bits(unfold(folded, ratio, nudges), values)


def test_neighbours_that_collide_come_back():
    """Just below a power of two, multiplying by 1.00002 sends two floats to one."""
    values = np.nextafter(np.float32(2), np.float32(0)) - np.arange(4000, dtype="f") * np.float32(2**-23)
    folded, nudges = fold(values.reshape(40, 100), SLIM_RATIO)
    assert nudges, "the case is not exercised"
    assert len(np.unique(folded)) < folded.size
    assert same_bits(unfold(folded, SLIM_RATIO, nudges), values.reshape(40, 100))
