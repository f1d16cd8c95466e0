"""Lossless codes of the positions of selected weights: one bit per weight, or one byte per gap between them.

A gap code lists, for each selected weight and for the end, the number of weights skipped before it. A byte of 255 skips
255 weights and selects none, so longer gaps take more bytes. Because a code leads to the end, it is valid for only one
number of weights, of at most 255 per byte. It is the shorter code below a density of about 1/8.
"""

import torch
from torch import Tensor

import wagle_kernels

CODINGS = ("gaps", "bits")
_SKIP = 255


def positions_of(bits: Tensor, numel: int) -> Tensor:
    """
    Find the flat indices of set bits.

    Args:
        bits (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Packed mask.
        numel (`int`): Number of weights.

    Returns:
        `torch.Tensor` of shape `(selected,)`, int64, rising.
    """
    chunk = wagle_kernels.CHUNK
    found = [
        wagle_kernels.unpack(bits[first // 8 :][: (min(chunk, numel - first) + 7) // 8], min(chunk, numel - first))
        .nonzero()
        .view(-1)
        .add_(first)
        for first in range(0, numel, chunk)
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=bits.device)


def bits_at(positions: Tensor, numel: int) -> Tensor:
    """Make a packed mask of shape `(ceil(numel / 8),)` with the bits at distinct flat indices set."""
    bits = torch.zeros((numel + 7) // 8, dtype=torch.uint8, device=positions.device)
    return bits.scatter_add_(0, positions >> 3, (1 << (positions & 7)).to(torch.uint8))


def encode(bits: Tensor, numel: int) -> tuple[str, Tensor]:
    """
    Encode a packed mask with the shorter of the two codes.

    Args:
        bits (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Packed mask.
        numel (`int`): Number of weights.

    Returns:
        `tuple[str, torch.Tensor]`: Name of the coding, one of `CODINGS`, and the code, uint8.
    """
    if wagle_kernels.popcount(bits) >= bits.numel():
        return "bits", bits
    code = _encode_gaps(positions_of(bits, numel), numel)
    return ("gaps", code) if code.numel() < bits.numel() else ("bits", bits)


def decode(coding: str, code: Tensor, numel: int) -> Tensor:
    """
    Decode a packed mask. A `ValueError` if the code is not valid for the number of weights.

    Args:
        coding (`str`): `"gaps"` or `"bits"`.
        code (`torch.Tensor` of shape `(bytes,)`, uint8): Code.
        numel (`int`): Number of weights.

    Returns:
        `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8.
    """
    count(coding, code, numel)
    return bits_at(_decode_gaps(code), numel) if coding == "gaps" else code


def count(coding: str, code: Tensor, numel: int) -> int:
    """Count the weights that a code selects, without decoding it; arguments and errors are those of [`decode`]."""
    if coding == "bits":
        return wagle_kernels.popcount(check_bits(code, numel))
    if code.dtype != torch.uint8 or code.dim() != 1:
        raise ValueError(f"needs gaps in one dimension of bytes, got {tuple(code.shape)} of {code.dtype}")
    stops = int((code != _SKIP).sum())
    if not len(code) or code[-1] == _SKIP or int(code.sum(dtype=torch.int64)) + stops != numel + 1:
        raise ValueError(f"has gaps that do not lead to the end of its {numel} weights")
    return stops - 1


def check_bits(bits: Tensor, numel: int) -> Tensor:
    """Return `bits`, or raise a `ValueError` unless they are a packed mask of `numel` weights, with no bit beyond."""
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((numel + 7) // 8,):
        raise ValueError(
            f"of {numel} weights needs {(numel + 7) // 8} mask bytes, got {tuple(bits.shape)} of {bits.dtype}"
        )
    if numel % 8 and int(bits[-1]) >> numel % 8:
        raise ValueError(f"has mask bits set beyond its {numel} weights")
    return bits


def _encode_gaps(positions: Tensor, numel: int) -> Tensor:
    stops = torch.cat([positions, positions.new_tensor([numel])])
    skipped = stops.diff(prepend=stops.new_tensor([-1])) - 1
    ends = (skipped // _SKIP + 1).cumsum(0)
    code = torch.full((int(ends[-1]),), _SKIP, dtype=torch.uint8, device=positions.device)
    code[ends - 1] = (skipped % _SKIP).to(torch.uint8)
    return code


def _decode_gaps(code: Tensor) -> Tensor:
    is_stop = code != _SKIP
    stops = (code.to(torch.int64) + is_stop).cumsum(0)[is_stop] - 1
    return stops[:-1]
