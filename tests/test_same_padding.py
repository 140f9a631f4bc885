"""SAME padding: the arithmetic against TensorFlow's definition, the convolutions against TensorFlow itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from porter.models.mobilenet_v3 import SameConv2d, same_padding

sizes, small = st.integers(1, 600), st.integers(1, 9)


@given(sizes, small, small, small)
def test_matches_tensorflows_formula(size, kernel, stride, dilation):
    """GetWindowedOutputSizeVerbose of tensorflow/core/framework/kernel_shape_util.cc."""
    before, after = same_padding(size, kernel, stride, dilation)
    effective = (kernel - 1) * dilation + 1
    out = math.ceil(size / stride)
    total = max((out - 1) * stride + effective - size, 0)
    assert (before, after) == (total // 2, total - total // 2)


@given(st.integers(1, 40), st.integers(1, 40), small, small, small)
def test_output_size(height, width, kernel, stride, dilation):
    conv = SameConv2d(2, 2, kernel, stride, dilation, groups=2)
    out = conv(torch.zeros(1, 2, height, width))
    assert out.shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.tensorflow
@pytest.mark.parametrize("all_sizes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_grid_against_tensorflow(tf, all_sizes):
    from porter.parity.padding_grid import SIZES, padding_grid

    cells = list(padding_grid(SIZES if all_sizes else SIZES[::6]))
    assert len(cells) >= (2000 if all_sizes else 300)
    assert [cell for cell in cells if not cell.passed] == []


@pytest.mark.tensorflow
def test_grid_notices_symmetric_padding(tf, monkeypatch):
    """PyTorch's usual symmetric padding must not pass."""
    from porter.models import mobilenet_v3 as module
    from porter.parity.padding_grid import padding_grid

    def symmetric(size, kernel, stride, dilation):
        return (-(-dilation * (kernel - 1) // 2),) * 2

    monkeypatch.setattr(module, "same_padding", symmetric)
    cells = list(padding_grid(sizes=((8, 8),)))
    assert any(cell.stride == 2 and cell.kernel == 3 and not cell.passed for cell in cells)
