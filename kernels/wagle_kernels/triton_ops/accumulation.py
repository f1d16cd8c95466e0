"""Sums of gradients in fp32, with one read and one write of the sum."""

# Triton's types do not know that a launch passes constants
# pyright: reportArgumentType=false
import triton
import triton.language as tl
from torch import Tensor

from .tiles import WIDE, bounds, is_even, row_tile, wide_grid

_OPTIONS = {**WIDE, "enable_fp_fusion": False}


@triton.jit
def _accumulate_kernel(total, grad, numel, SQUARED: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr):
    # Load
    base = tl.program_id(0).to(tl.int64) * (ROWS * 8)
    local, mask = row_tile(ROWS), bounds(numel, base, ROWS, EVEN)
    g = tl.load(grad + base + local, mask=mask).to(tl.float32)
    sums = tl.load(total + base + local, mask=mask)
    # Update
    if SQUARED:
        g *= g
    sums += g
    # Store
    tl.store(total + base + local, sums, mask=mask)


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False) -> Tensor:
    """See [`wagle_kernels.accumulate`]."""
    if grad.numel():
        grid = wide_grid(grad.numel())
        _accumulate_kernel[grid](total, grad, grad.numel(), squared, is_even(grad), **_OPTIONS)
    return total
