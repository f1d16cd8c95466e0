"""Positions of the selected elements of many tensors in one compact array, in a form that kernels can read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from .reference.bits import popcount_per_byte, unpack
from .reference.chunking import CHUNK

TILE = 8192
"""Elements of one tensor that one program processes."""
RANK_GROUP = 64
"""Selected elements that share a scale of 8-bit state, if positions are indices."""
DENSE_GROUP = 128
"""Elements, selected or not, that share a scale of 8-bit state, if positions are bits."""
INDEX_DENSITY = 1 / 16
"""Density up to which two bytes per selected element are less than one bit per element."""


@dataclass(frozen=True, eq=False)
class Layout:
    """
    Layout of the selected elements of flat tensors in one compact array: tensor by tensor, in rising flat order.

    Tensors are cut into tiles of `TILE` elements (the last may be shorter). Positions in a tile have one of two
    codings: `bits`, one bit per element, or `indices`, two bytes per selected element. Up to a density of 1/16, indices
    take less memory, and kernels skip unselected elements.

    Args:
        numels (`tuple[int, ...]`): Number of elements of each tensor.
        tiles (`tuple[int, ...]`): First tile of each tensor, and the number of tiles.
        offsets (`tuple[int, ...]`): First compact element of each tensor, and the number of selected elements.
        starts (`torch.Tensor` of shape `(tiles + 1,)`, int64): `offsets`, per tile.
        groups (`torch.Tensor` of shape `(tiles + 1,)`, int64):
            First group of each tile, and the number of groups. A group shares a scale of 8-bit state within one tile.
        owners (`torch.Tensor` of shape `(tiles,)`, int32): Index of each tile's tensor.
        first_tiles (`torch.Tensor` of shape `(tensors + 1,)`, int32): `tiles`, on the device.
        bits (`torch.Tensor` of shape `(tiles * TILE / 8,)`, uint8, *optional*):
            Packed mask, each tensor padded to full tiles.
        indices (`torch.Tensor` of shape `(selected,)`, int16, *optional*): Position of each element in its tile.
    """

    numels: tuple[int, ...]
    tiles: tuple[int, ...]
    offsets: tuple[int, ...]
    starts: Tensor
    groups: Tensor
    owners: Tensor
    first_tiles: Tensor
    bits: Tensor | None
    indices: Tensor | None

    @classmethod
    def of(cls, packed: Sequence[Tensor], numels: Sequence[int], *, indexed: bool | None = None) -> "Layout":
        """
        Make the layout of packed masks.

        Args:
            packed (sequence of `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask of each tensor.
            numels (sequence of `int`): Number of elements of each tensor.
            indexed (`bool`, *optional*): Whether to use `indices`; by default the smaller coding.
        """
        device = packed[0].device
        sizes = [(numel + TILE - 1) // TILE for numel in numels]
        tiles = tuple(accumulate(sizes, initial=0))
        first_tiles = torch.tensor(tiles, dtype=torch.int32, device=device)
        counts = torch.cat([_tile_counts(bits, size) for bits, size in zip(packed, sizes, strict=True)])
        starts = _running_total(counts)
        host_starts = starts[first_tiles].tolist()
        if indexed is None:
            indexed = host_starts[-1] <= INDEX_DENSITY * sum(numels)
        groups = (counts + RANK_GROUP - 1) // RANK_GROUP if indexed else torch.full_like(counts, TILE // DENSE_GROUP)
        return cls(
            numels=tuple(numels),
            tiles=tiles,
            offsets=tuple(host_starts),
            starts=starts,
            groups=_running_total(groups),
            owners=torch.repeat_interleave(first_tiles.diff()).to(torch.int32),
            first_tiles=first_tiles,
            bits=None if indexed else _padded_bits(packed, tiles, device),
            indices=_indices(packed, numels, host_starts[-1], device) if indexed else None,
        )

    @cached_property
    def host_starts(self) -> Tensor:
        """Copy of `starts` in CPU memory."""
        return self.starts.cpu()

    @property
    def num_selected(self) -> int:
        """Number of selected elements."""
        return self.offsets[-1]

    def selected_of(self, tensor: int) -> slice:
        """Return the range of a tensor's compact elements."""
        return slice(self.offsets[tensor], self.offsets[tensor + 1])

    def tiles_of(self, tensor: int) -> slice:
        """Return the range of a tensor's tiles."""
        return slice(self.tiles[tensor], self.tiles[tensor + 1])

    def groups_of(self, tensor: int) -> slice:
        """Return the range of a tensor's groups."""
        first, last = self.groups[self.first_tiles[tensor : tensor + 2]].tolist()
        return slice(first, last)

    def check_sizes(self, tensors: Mapping[int, Tensor], compact: Mapping[str, Tensor], selected: int) -> None:
        """
        Raise a `ValueError` unless tensors (by index) and compact arrays (by name) have the sizes of the layout.
        Otherwise a kernel would read and write beyond their ends.
        """
        for index, tensor in tensors.items():
            if tensor.numel() != self.numels[index]:
                raise ValueError(f"Tensor {index} has {tensor.numel()} elements, its layout {self.numels[index]}.")
        for name, values in compact.items():
            if values.numel() != selected:
                raise ValueError(f"`{name}` has {values.numel()} elements, the layout {selected} selected ones.")


def _tile_counts(packed: Tensor, tiles: int) -> Tensor:
    """Count the set bits of each tile, int64."""
    padded = nn.functional.pad(packed, (0, tiles * TILE // 8 - packed.numel()))
    counts = [popcount_per_byte(part).view(-1, TILE // 8).sum(1, dtype=torch.int64) for part in padded.split(CHUNK)]
    return torch.cat(counts)


def _running_total(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _padded_bits(packed: Sequence[Tensor], tiles: Sequence[int], device: torch.device) -> Tensor:
    bits = torch.zeros(tiles[-1] * TILE // 8, dtype=torch.uint8, device=device)
    for octets, first in zip(packed, tiles):
        bits[first * TILE // 8 :][: octets.numel()] = octets
    return bits


def _indices(packed: Sequence[Tensor], numels: Sequence[int], selected: int, device: torch.device) -> Tensor:
    indices, stop = torch.empty(selected, dtype=torch.int16, device=device), 0
    chunk = CHUNK if device.type == "cpu" else 64 * CHUNK  # every `nonzero` waits for the device
    for octets, numel in zip(packed, numels):
        for first in range(0, numel, chunk):
            size = min(chunk, numel - first)
            found = unpack(octets[first // 8 :][: (size + 7) // 8], size).nonzero().view(-1)
            start, stop = stop, stop + found.numel()
            indices[start:stop] = found % TILE
    return indices
