"""Accumulation of the kernels, against fp64 and the specification."""

import pytest
import torch

import wagle_kernels

from ..helpers import DTYPES, TILED_SIZES, assert_not_worse, tensors
from .addresses import FAR, aligned, far_copy, misaligned
from .marks import interpreter_only, masked_lanes

pytestmark = masked_lanes


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_is_not_worse_than_the_specification(dtype, numel):
    _, total, grad = tensors(numel, seed=numel)
    grad = grad.to(dtype)
    for squared in (False, True):
        before = total.abs() if squared else total
        exact = before.double() + (grad.double() ** 2 if squared else grad.double())
        theirs = wagle_kernels.accumulate(before.clone(), grad, squared=squared, backend="reference")
        for place in (aligned, misaligned):
            target = place(before)
            assert wagle_kernels.accumulate(target, place(grad), squared=squared, backend="triton") is target
            assert_not_worse(target, theirs, exact, 2.0**-24 * exact.abs())


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("squared", [False, True])
def test_accumulation_reaches_beyond_32_bits(squared, numel, last_program):
    grad, total, _ = tensors(numel)
    far_total = far_copy(total)
    wagle_kernels.accumulate(far_total, far_copy(grad.bfloat16()), squared=squared, backend="triton")
    wagle_kernels.accumulate(total, grad.bfloat16(), squared=squared, backend="reference")
    torch.testing.assert_close(far_total[FAR:], total, rtol=1e-6, atol=0)
    assert not far_total[:numel].any()
