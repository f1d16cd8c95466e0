"""Packed masks: eight elements per byte, lowest bit first, as `numpy.packbits(bitorder="little")` packs them."""

import torch
from torch import Tensor

from .chunking import chunks

_GATHER_BITS = 0x0102040810204080  # product with eight 0/1 bytes: bit j of the top byte is byte j, without carries


def pack(bits: Tensor, out: Tensor | None = None) -> Tensor:
    """See [`wagle_kernels.pack`]."""
    numel = bits.numel()
    if out is None:
        out = torch.empty((numel + 7) // 8, dtype=torch.uint8, device=bits.device)
    for part in chunks(numel):
        piece = bits[part]
        if piece.numel() % 8 or piece.storage_offset() % 8:
            padded = piece.new_zeros((piece.numel() + 7) // 8 * 8)
            padded[: piece.numel()] = piece
            piece = padded
        octets = piece.view(torch.int64) * _GATHER_BITS >> 56
        out[part.start // 8 : (part.stop + 7) // 8] = octets.to(torch.uint8)  # negative octets wrap to 128..255
    return out


def unpack(packed: Tensor, numel: int) -> Tensor:
    """See [`wagle_kernels.unpack`]."""
    bits = torch.empty(numel, dtype=torch.bool, device=packed.device)
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    for part in chunks(numel):
        octets = packed[part.start // 8 : (part.stop + 7) // 8].view(-1, 1)
        bits[part] = (octets >> shifts & 1).view(-1)[: part.stop - part.start].view(torch.bool)
    return bits


def popcount(packed: Tensor) -> int:
    """See [`wagle_kernels.popcount`]."""
    return sum(int(popcount_per_byte(packed[part]).sum(dtype=torch.int64)) for part in chunks(packed.numel()))


def popcount_per_byte(packed: Tensor) -> Tensor:
    """Count the set bits of every byte, uint8."""
    v = packed - (packed >> 1 & 0x55)
    v = (v & 0x33) + (v >> 2 & 0x33)
    return (v + (v >> 4)) & 0x0F
