"""Accumulation of the specification, against plain torch."""

import pytest
import torch

import wagle_kernels

from ..helpers import DTYPES, SIZES, tensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
def test_accumulate_adds_gradients_or_their_squares_in_fp32(numel, dtype, chunk):
    _, first, second = (t.to(dtype) for t in tensors(numel))
    total, squares = torch.zeros(numel), torch.zeros(numel)
    for grad in (first, second):
        assert wagle_kernels.accumulate(total, grad) is total
        wagle_kernels.accumulate(squares, grad, squared=True)
    torch.testing.assert_close(total, first.float() + second.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(squares, first.float() ** 2 + second.float() ** 2, rtol=1e-6, atol=0)
