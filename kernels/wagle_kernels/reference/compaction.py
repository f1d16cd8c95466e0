"""Dense tensors to compact arrays and back: the specification. Tiles are processed in blocks of bounded memory."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import DENSE_GROUP, RANK_GROUP, TILE, Layout
from .bits import unpack

BLOCK_SELECTED = 2**18  # compact elements: at most 2 MB for their positions
BLOCK_TILES = 32  # if positions are bits: at most 2 MB to rank them


@dataclass(frozen=True)
class Block:
    """
    Consecutive tiles that are processed together.

    Args:
        layout ([`Layout`]): Layout of the tiles.
        tiles (`slice`): Range of the tiles.
        selected (`slice`): Range of their compact elements.
    """

    layout: Layout
    tiles: slice
    selected: slice

    def positions(self) -> Tensor:
        """Compute the position of every compact element, `tile * TILE + position in the tile`, int64."""
        first, last = self.tiles.start, self.tiles.stop
        if self.layout.indices is not None:
            return self.tile_of_each() * TILE + self.layout.indices[self.selected]
        assert self.layout.bits is not None  # a layout has one or the other
        bits = unpack(self.layout.bits[first * TILE // 8 : last * TILE // 8], (last - first) * TILE)
        places = torch.arange(first * TILE, last * TILE, device=bits.device)
        # As `nonzero`, but up to three times as fast: every place is written at its rank, unselected ones at 0
        out = places.new_empty(self.selected.stop - self.selected.start + 1)
        return out.scatter_(0, bits.cumsum(0).mul_(bits), places)[1:]

    def tile_of_each(self) -> Tensor:
        """Compute the tile of every compact element, int64."""
        counts = self.layout.starts[self.tiles.start : self.tiles.stop + 1].diff()
        tiles = torch.arange(self.tiles.start, self.tiles.stop, device=counts.device)
        return torch.repeat_interleave(tiles, counts, output_size=self.selected.stop - self.selected.start)

    def group_of_each(self, positions: Tensor) -> Tensor:
        """Compute the group of every compact element, int64."""
        if self.layout.indices is None:
            return positions // DENSE_GROUP
        tiles = self.tile_of_each()
        rank = torch.arange(self.selected.start, self.selected.stop, device=tiles.device) - self.layout.starts[tiles]
        return self.layout.groups[tiles] + rank // RANK_GROUP

    def by_tensor(self, positions: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """Yield each tensor's index, its part of the block's compact elements, and their flat indices in the tensor."""
        layout, start = self.layout, self.selected.start
        first, last = (bisect_right(layout.tiles, tile) - 1 for tile in (self.tiles.start, self.tiles.stop - 1))
        for tensor in range(first, last + 1):
            part = layout.selected_of(tensor)
            part = slice(max(part.start - start, 0), min(part.stop - start, len(positions)))
            yield tensor, part, positions[part] - layout.tiles[tensor] * TILE


def blocks(layout: Layout, tiles: slice) -> Iterator[Block]:
    """Cut a range of tiles into blocks."""
    starts, first = layout.host_starts, tiles.start
    while first < tiles.stop:
        fitting = int(torch.searchsorted(starts, starts[first] + BLOCK_SELECTED, right=True)) - 1
        last = min(fitting, tiles.stop if layout.bits is None else first + BLOCK_TILES, tiles.stop)
        yield Block(layout, slice(first, last), slice(int(starts[first]), int(starts[last])))
        first = last


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
    tiles, offset = layout.tiles_of(tensor), layout.offsets[tensor]
    for block in blocks(layout, tiles):
        values = dense.index_select(0, block.positions() - tiles.start * TILE)
        target = out[block.selected.start - offset : block.selected.stop - offset]
        target.add_(values) if accumulate else target.copy_(values)
        if squares is not None:
            first, last = block.tiles.start - tiles.start, block.tiles.stop - tiles.start
            squares[first:last] = 0
            squares[first] = torch.linalg.vector_norm(target, dtype=torch.float64) ** 2
    return out


def scatter(dense: Tensor, layout: Layout, tensor: int, compact: Tensor) -> Tensor:
    """See [`wagle_kernels.scatter`]."""
    tiles, offset = layout.tiles_of(tensor), layout.offsets[tensor]
    for block in blocks(layout, tiles):
        part = compact[block.selected.start - offset : block.selected.stop - offset]
        put(dense, block.positions() - tiles.start * TILE, part)
    return dense


def put(dense: Tensor, indices: Tensor, values: Tensor) -> None:
    """Set `dense[indices] = values`, for distinct indices and one dtype. `scatter_` is the fastest way on a CPU."""
    if dense.element_size() == 2:  # as integers: torch would copy a whole tensor of 16-bit floats to fp32
        dense, values = dense.view(torch.int16), values.view(torch.int16)
    dense.scatter_(0, indices, values)
