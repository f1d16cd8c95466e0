"""Functions shared by the kernels: a tile of rows of eight elements, its bounds, and the ranks of selected elements."""

import triton
import triton.language as tl
from torch import Tensor

from ..layout import TILE

# Elementwise kernels: 2,048 elements per program, 16 per thread
WIDE = {"ROWS": 256, "num_warps": 4}


def narrow(rows: int) -> dict[str, int]:
    """Options of kernels that rank elements or branch on data: one warp per tile, so that it waits at no barrier."""
    return {"ROWS": rows, "STEPS": TILE // (8 * rows), "num_warps": 1}


def wide_grid(numel: int) -> tuple[int]:
    """Grid of an elementwise kernel."""
    return (triton.cdiv(numel, 8 * WIDE["ROWS"]),)


def tile_grid(numel: int) -> tuple[int]:
    """Grid of a kernel with one program per tile."""
    return (triton.cdiv(numel, TILE),)


def is_even(*tensors: Tensor) -> bool:
    """Whether every row is full, so that bounds can be checked per row and accesses stay 16 bytes wide."""
    return all(tensor.numel() % 8 == 0 for tensor in tensors)


@triton.jit
def row_tile(ROWS: tl.constexpr):
    """Offsets of the elements of a tile, of shape `[ROWS, 8]`, int32."""
    return tl.arange(0, ROWS)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def row_bounds(numel, base, ROWS: tl.constexpr):
    """Whether each row holds elements, of shape `[ROWS]`."""
    return tl.arange(0, ROWS) * 8 < tl.minimum(numel - base, ROWS * 8).to(tl.int32)


@triton.jit
def bounds(numel, base, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """Whether each element exists, of shape `[ROWS, 8]`; constant within a row if all rows are full."""
    if EVEN:
        return tl.broadcast_to(row_bounds(numel, base, ROWS)[:, None], [ROWS, 8])
    else:
        return row_tile(ROWS) < tl.minimum(numel - base, ROWS * 8).to(tl.int32)


@triton.jit
def to_octets(bits, ROWS: tl.constexpr):
    """Pack 0/1 integers of shape `[ROWS, 8]` into bytes of shape `[ROWS]`."""
    return tl.sum(bits << tl.arange(0, 8)[None, :], axis=1).to(tl.uint8)


@triton.jit
def from_octets(octets):
    """Unpack bytes of shape `[ROWS]` into 0/1 integers of shape `[ROWS, 8]`."""
    return (octets.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1


@triton.jit
def ranks(octets):
    """
    Number of set bits before each element of a tile, of shape `[ROWS, 8]`, and number of set bits of the tile.
    """
    # Spread the bits of a row to the nibbles of one word
    x = octets.to(tl.uint32)
    x = (x | (x << 12)) & 0x000F000F
    x = (x | (x << 6)) & 0x03030303
    x = (x | (x << 3)) & 0x11111111
    # The product holds their running totals
    totals = x * 0x11111111
    of_row = (totals >> 28).to(tl.int32)
    # Add the totals of the rows before
    before_row = tl.cumsum(of_row, axis=0) - of_row
    in_row = ((totals - x)[:, None] >> (4 * tl.arange(0, 8)[None, :]).to(tl.uint32)) & 15
    return before_row[:, None] + in_row.to(tl.int32), tl.sum(of_row, axis=0)


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """Round fp32 values to another dtype. bf16 is rounded with integers, since casts truncate in the interpreter."""
    if dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits = tl.where(values == values, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)  # NaN stays NaN
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(dtype)


@triton.jit
def fmix32(h):
    """Apply the 32-bit finalizer of MurmurHash3 to uint32 values."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)
