"""Dense tensors to compact arrays and back, by the positions that a layout holds."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import DENSE_GROUP, RANK_GROUP, TILE, Layout
from .bits import unpack

RUN_SELECTED = 2**18  # compact elements: at most 2 MB for their positions
RUN_TILES = 32  # where positions are bits: at most 2 MB to rank them


@dataclass(frozen=True)
class Run:
    """
    Consecutive tiles that are worked on together.

    Args:
        layout ([`Layout`]): The layout.
        tiles (`slice`): The tiles.
        selected (`slice`): Their compact elements.
    """

    layout: Layout
    tiles: slice
    selected: slice

    def positions(self) -> Tensor:
        """Place of every compact element as `tile * TILE + position in the tile`, int64."""
        first, last = self.tiles.start, self.tiles.stop
        if self.layout.indices is not None:
            return self.tile_of_each() * TILE + self.layout.indices[self.selected]
        assert self.layout.bits is not None  # a layout has either
        bits = unpack(self.layout.bits[first * TILE // 8 : last * TILE // 8], (last - first) * TILE)
        places = torch.arange(first * TILE, last * TILE, device=bits.device)
        # `nonzero`, up to three times as fast: every place goes to its rank, those not selected to 0
        out = places.new_empty(self.selected.stop - self.selected.start + 1)
        return out.scatter_(0, bits.cumsum(0).mul_(bits), places)[1:]

    def tile_of_each(self) -> Tensor:
        """Tile of every compact element, int64."""
        counts = self.layout.starts[self.tiles.start : self.tiles.stop + 1].diff()
        tiles = torch.arange(self.tiles.start, self.tiles.stop, device=counts.device)
        return torch.repeat_interleave(tiles, counts, output_size=self.selected.stop - self.selected.start)

    def group_of_each(self, positions: Tensor) -> Tensor:
        """Group of every compact element, int64."""
        if self.layout.indices is None:
            return positions // DENSE_GROUP
        tiles = self.tile_of_each()
        rank = torch.arange(self.selected.start, self.selected.stop, device=tiles.device) - self.layout.starts[tiles]
        return self.layout.groups[tiles] + rank // RANK_GROUP

    def by_tensor(self, positions: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """Per tensor: its number, its part of the run's compact elements, and their flat indices in the tensor."""
        layout, start = self.layout, self.selected.start
        first, last = (bisect_right(layout.tiles, tile) - 1 for tile in (self.tiles.start, self.tiles.stop - 1))
        for tensor in range(first, last + 1):
            part = layout.selected_of(tensor)
            part = slice(max(part.start - start, 0), min(part.stop - start, len(positions)))
            yield tensor, part, positions[part] - layout.tiles[tensor] * TILE


def runs(layout: Layout, tiles: slice) -> Iterator[Run]:
    """Runs that cover the tiles."""
    starts, first = layout.host_starts, tiles.start
    while first < tiles.stop:
        fitting = int(torch.searchsorted(starts, starts[first] + RUN_SELECTED, right=True)) - 1
        last = min(fitting, tiles.stop if layout.bits is None else first + RUN_TILES, tiles.stop)
        yield Run(layout, slice(first, last), slice(int(starts[first]), int(starts[last])))
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
    for run in runs(layout, tiles):
        values = dense.index_select(0, run.positions() - tiles.start * TILE)
        target = out[run.selected.start - offset : run.selected.stop - offset]
        target.add_(values) if accumulate else target.copy_(values)
        if squares is not None:
            first, last = run.tiles.start - tiles.start, run.tiles.stop - tiles.start
            squares[first:last] = 0
            squares[first] = torch.linalg.vector_norm(target, dtype=torch.float64) ** 2
    return out


def scatter(dense: Tensor, layout: Layout, tensor: int, compact: Tensor) -> Tensor:
    """See [`wagle_kernels.scatter`]."""
    tiles, offset = layout.tiles_of(tensor), layout.offsets[tensor]
    for run in runs(layout, tiles):
        part = compact[run.selected.start - offset : run.selected.stop - offset]
        put(dense, run.positions() - tiles.start * TILE, part)
    return dense


def put(dense: Tensor, indices: Tensor, values: Tensor) -> None:
    """`dense[indices] = values` for distinct indices and one dtype, by `scatter_`, the fastest way there is on a CPU."""
    if dense.element_size() == 2:  # as bit patterns: of 16-bit floats torch would copy the whole tensor to fp32
        dense, values = dense.view(torch.int16), values.view(torch.int16)
    dense.scatter_(0, indices, values)
