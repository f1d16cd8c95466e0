"""What the kernels share: the tile of rows of eight elements, its bounds, and positions of selected elements in it."""

import triton
import triton.language as tl
from torch import Tensor

from ..layout import TILE

# Elementwise kernels: 2,048 elements a program, 16 a thread
WIDE = {"ROWS": 256, "num_warps": 4}


def narrow(rows: int) -> dict[str, int]:
    """For kernels that rank, or branch on what they find: a warp works alone through a tile, and waits at no barrier."""
    return {"ROWS": rows, "STEPS": TILE // (8 * rows), "num_warps": 1}


def wide_grid(numel: int) -> tuple[int]:
    """Programs of an elementwise kernel."""
    return (triton.cdiv(numel, 8 * WIDE["ROWS"]),)


def tile_grid(numel: int) -> tuple[int]:
    """Programs of a kernel that works tile by tile."""
    return (triton.cdiv(numel, TILE),)


def is_even(*tensors: Tensor) -> bool:
    """Whether every row is whole, so that bounds are checked by row and accesses stay 16 bytes wide."""
    return all(tensor.numel() % 8 == 0 for tensor in tensors)


@triton.jit
def row_tile(ROWS: tl.constexpr):
    """Offsets of a tile's elements, of shape `[ROWS, 8]`, int32."""
    return tl.arange(0, ROWS)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def row_bounds(numel, base, ROWS: tl.constexpr):
    """Which rows hold elements, of shape `[ROWS]`."""
    return tl.arange(0, ROWS) * 8 < tl.minimum(numel - base, ROWS * 8).to(tl.int32)


@triton.jit
def bounds(numel, base, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """Which elements exist, of shape `[ROWS, 8]`; constant along a row where all rows are whole."""
    if EVEN:
        return tl.broadcast_to(row_bounds(numel, base, ROWS)[:, None], [ROWS, 8])
    else:
        return row_tile(ROWS) < tl.minimum(numel - base, ROWS * 8).to(tl.int32)


@triton.jit
def to_octets(bits, ROWS: tl.constexpr):
    """Bytes of shape `[ROWS]` from 0/1 integers of shape `[ROWS, 8]`."""
    return tl.sum(bits << tl.arange(0, 8)[None, :], axis=1).to(tl.uint8)


@triton.jit
def from_octets(octets):
    """0/1 integers of shape `[ROWS, 8]` from bytes of shape `[ROWS]`."""
    return (octets.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1


@triton.jit
def ranks(octets):
    """
    How many set bits come before each element of a tile, `[ROWS, 8]`, and how many there are.

    A row's bits are spread to the nibbles of one word, whose product with 0x11111111 holds their running totals.
    """
    x = octets.to(tl.uint32)
    x = (x | (x << 12)) & 0x000F000F
    x = (x | (x << 6)) & 0x03030303
    x = (x | (x << 3)) & 0x11111111
    totals = x * 0x11111111
    of_row = (totals >> 28).to(tl.int32)
    before_row = tl.cumsum(of_row, axis=0) - of_row
    in_row = ((totals - x)[:, None] >> (4 * tl.arange(0, 8)[None, :]).to(tl.uint32)) & 15
    return before_row[:, None] + in_row.to(tl.int32), tl.sum(of_row, axis=0)


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """fp32 values in another dtype; to bf16 with integers, since a cast would only cut in the interpreter."""
    if dtype == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits = tl.where(values == values, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)  # NaN stays NaN
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(dtype)


@triton.jit
def mix(h):
    """The 32-bit finaliser of MurmurHash3, on uint32."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)
