"""Dense tensors to compact arrays and back, by indices (which touch only selected elements) or by bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import TILE, Layout
from .tiles import from_octets, narrow, ranks, rounded, row_tile

# One warp per tile: by indices over CHUNK selected elements at a time, by bits over all elements, row by row
BY_INDICES = {"TILE": TILE, "CHUNK": 256, "num_warps": 1, "enable_fp_fusion": True}
BY_BITS = {**narrow(rows=32), "enable_fp_fusion": True}

# A tensor's part of a compact array starts anywhere, so kernels are not compiled once per alignment
_PLACED = {
    "do_not_specialize": ("first_tile", "offset"),
    "do_not_specialize_on_alignment": ("out", "squares", "compact"),
}


@triton.jit
def tile_span(starts, tile):
    """First compact element of a tile, int64, and number of its compact elements, int32."""
    start = tl.load(starts + tile)
    return start, (tl.load(starts + tile + 1) - start).to(tl.int32)


@triton.jit(**_PLACED)
def _compress_indices_kernel(
    dense,
    out,
    squares,
    starts,
    indices,
    first_tile,
    offset,
    ACCUMULATE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    start, count = tile_span(starts, first_tile + program)
    dense += program.to(tl.int64) * TILE
    place = tl.arange(0, CHUNK)
    sums = tl.zeros([CHUNK], tl.float32)
    for chunk in range(0, count, CHUNK):
        # Load
        mask = place < count - chunk
        local = tl.load(indices + (start + chunk) + place, mask=mask).to(tl.int32)
        stored = tl.load(dense + local, mask=mask, other=0.0)
        # Update
        target = out + (start - offset + chunk)
        if ACCUMULATE or dense.dtype != out.dtype:
            values = stored.to(tl.float32)
            if ACCUMULATE:
                values += tl.load(target + place, mask=mask, other=0.0).to(tl.float32)
            stored = rounded(values, out.dtype.element_ty)
        # Store
        tl.store(target + place, stored, mask=mask)
        sums += stored.to(tl.float32) * stored.to(tl.float32)
    # Store the sum of squares
    if squares is not None:
        tl.store(squares + program, tl.sum(sums, axis=0))


@triton.jit(**_PLACED)
def _compress_bits_kernel(
    dense,
    out,
    squares,
    starts,
    bits,
    first_tile,
    offset,
    ACCUMULATE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    program = tl.program_id(0)
    start, _ = tile_span(starts, first_tile + program)
    out += start - offset
    local = row_tile(ROWS)
    sums = tl.zeros([ROWS, 8], tl.float32)
    for step in range(STEPS):
        # Find the selected elements and their ranks
        base = (program.to(tl.int64) * STEPS + step) * (ROWS * 8)
        octets = tl.load(bits + ((first_tile + program).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS))
        mask = from_octets(octets) != 0
        rank, found = ranks(octets)
        # Load
        read = tl.broadcast_to((octets != 0)[:, None], [ROWS, 8]) if EVEN else mask
        stored = tl.load(dense + base + local, mask=read, other=0.0)
        # Update
        if ACCUMULATE or dense.dtype != out.dtype:
            values = stored.to(tl.float32)
            if ACCUMULATE:
                values += tl.load(out + rank, mask=mask, other=0.0).to(tl.float32)
            stored = rounded(values, out.dtype.element_ty)
        # Store
        tl.store(out + rank, stored, mask=mask)
        selected = tl.where(mask, stored.to(tl.float32), 0.0)
        sums += selected * selected
        out += found
    # Store the sum of squares
    if squares is not None:
        tl.store(squares + program, tl.sum(tl.sum(sums, axis=1), axis=0))


@triton.jit(**_PLACED)
def _scatter_indices_kernel(
    dense, compact, starts, indices, first_tile, offset, TILE: tl.constexpr, CHUNK: tl.constexpr
):
    program = tl.program_id(0)
    start, count = tile_span(starts, first_tile + program)
    dense += program.to(tl.int64) * TILE
    place = tl.arange(0, CHUNK)
    for chunk in range(0, count, CHUNK):
        # Load
        mask = place < count - chunk
        local = tl.load(indices + (start + chunk) + place, mask=mask).to(tl.int32)
        values = tl.load(compact + (start - offset + chunk) + place, mask=mask)
        # Store
        tl.store(dense + local, values, mask=mask)


@triton.jit(**_PLACED)
def _scatter_bits_kernel(
    dense, compact, starts, bits, first_tile, offset, EVEN: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr
):
    program = tl.program_id(0)
    start, _ = tile_span(starts, first_tile + program)
    compact += start - offset
    local = row_tile(ROWS)
    for step in range(STEPS):
        # Find the selected elements and their ranks
        base = (program.to(tl.int64) * STEPS + step) * (ROWS * 8)
        octets = tl.load(bits + ((first_tile + program).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS))
        mask = from_octets(octets) != 0
        rank, found = ranks(octets)
        # Load
        values = tl.load(compact + rank, mask=mask)
        # Store
        if EVEN:  # whole rows in accesses of 16 bytes, unselected elements as they were
            touched = tl.broadcast_to((octets != 0)[:, None], [ROWS, 8])
            values = tl.where(mask, values, tl.load(dense + base + local, mask=touched))
            tl.store(dense + base + local, values, mask=touched)
        else:
            tl.store(dense + base + local, values, mask=mask)
        compact += found


def _launch(kernels, layout: Layout, tensor: int, *tensors, **options) -> None:
    """Launch the kernel for the layout's coding on every tile of a tensor."""
    by_indices, by_bits = kernels
    tiles = layout.tiles_of(tensor)
    if tiles.start == tiles.stop:
        return
    place = dict(first_tile=tiles.start, offset=layout.offsets[tensor])
    grid = (tiles.stop - tiles.start,)
    if layout.indices is not None:
        by_indices[grid](*tensors, layout.starts, layout.indices, **place, **options, **BY_INDICES)
    else:
        even = layout.numels[tensor] % 8 == 0
        by_bits[grid](*tensors, layout.starts, layout.bits, EVEN=even, **place, **options, **BY_BITS)


def compress(
    dense: Tensor,
    layout: Layout,
    tensor: int,
    out: Tensor,
    *,
    accumulate: bool = False,
    squares: Tensor | None = None,
) -> Tensor:
    """See [`wagle_kernels.compress`]."""
    selected = layout.selected_of(tensor)
    layout.check_sizes({tensor: dense}, {"out": out}, selected.stop - selected.start)
    kernels = _compress_indices_kernel, _compress_bits_kernel
    _launch(kernels, layout, tensor, dense, out, squares, ACCUMULATE=accumulate)
    return out


def scatter(dense: Tensor, layout: Layout, tensor: int, compact: Tensor) -> Tensor:
    """See [`wagle_kernels.scatter`]."""
    selected = layout.selected_of(tensor)
    layout.check_sizes({tensor: dense}, {"compact": compact}, selected.stop - selected.start)
    _launch((_scatter_indices_kernel, _scatter_bits_kernel), layout, tensor, dense, compact)
    torch.autograd.graph.increment_version(dense)  # autograd does not see writes of kernels
    return dense
