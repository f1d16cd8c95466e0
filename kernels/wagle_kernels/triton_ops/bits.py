"""Packed masks, one byte per row."""

# Triton's types do not know that a launch passes constants
# pyright: reportArgumentType=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import WIDE, bounds, from_octets, is_even, row_bounds, row_tile, to_octets, wide_grid

_OPTIONS = {**WIDE, "enable_fp_fusion": False}


@triton.jit
def _pack_kernel(packed, bits, numel, EVEN: tl.constexpr, ROWS: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * (ROWS * 8)
    # Load
    mask = bounds(numel, base, ROWS, EVEN)
    values = tl.load(bits + base + row_tile(ROWS), mask=mask, other=0).to(tl.int32)
    # Encode and store
    octets = packed + base // 8 + tl.arange(0, ROWS)
    tl.store(octets, to_octets(values, ROWS), mask=row_bounds(numel, base, ROWS))


@triton.jit
def _unpack_kernel(bits, packed, numel, EVEN: tl.constexpr, ROWS: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * (ROWS * 8)
    # Load
    octets = tl.load(packed + base // 8 + tl.arange(0, ROWS), mask=row_bounds(numel, base, ROWS), other=0)
    # Decode and store
    mask = bounds(numel, base, ROWS, EVEN)
    tl.store(bits + base + row_tile(ROWS), from_octets(octets).to(tl.uint8), mask=mask)


@triton.jit
def _popcount_kernel(counts, packed, num_bytes, EVEN: tl.constexpr, ROWS: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * (ROWS * 8)
    # Load
    v = tl.load(packed + base + row_tile(ROWS), mask=bounds(num_bytes, base, ROWS, EVEN), other=0).to(tl.int32)
    # Count
    v = v - ((v >> 1) & 0x55)
    v = (v & 0x33) + ((v >> 2) & 0x33)
    total = tl.sum(tl.sum((v + (v >> 4)) & 0x0F, axis=1), axis=0)
    # Store
    tl.store(counts + tl.program_id(0), total)


def pack(bits: Tensor, out: Tensor | None = None) -> Tensor:
    """See [`wagle_kernels.pack`]."""
    numel = bits.numel()
    if out is None:
        out = torch.empty((numel + 7) // 8, dtype=torch.uint8, device=bits.device)
    if numel:
        _pack_kernel[wide_grid(numel)](out, bits.view(torch.uint8), numel, is_even(bits), **_OPTIONS)
    return out


def unpack(packed: Tensor, numel: int) -> Tensor:
    """See [`wagle_kernels.unpack`]."""
    bits = torch.empty(numel, dtype=torch.bool, device=packed.device)
    if numel:
        _unpack_kernel[wide_grid(numel)](bits.view(torch.uint8), packed, numel, is_even(bits), **_OPTIONS)
    return bits


def popcount(packed: Tensor) -> int:
    """See [`wagle_kernels.popcount`]."""
    grid = wide_grid(packed.numel())
    counts = torch.zeros(grid, dtype=torch.int32, device=packed.device)
    if packed.numel():
        _popcount_kernel[grid](counts, packed, packed.numel(), is_even(packed), **_OPTIONS)
    return int(counts.sum())
