"""Positions of selected weights in few bytes, without loss: one bit a weight, or the gaps between them in a byte each.

A gap code lists, for each selected weight and for the end, how many are skipped before it; 255 skips as many and
selects none, so that longer gaps take more bytes. As it leads to the end, a code is one of a single number of weights,
and not of more than 255 a byte. It is the shorter of the two below a density of about 1/8.
"""

import torch
from torch import Tensor

import wagle_kernels

CODINGS = ("gaps", "bits")
_LONG = 255


def positions_of(bits: Tensor, numel: int) -> Tensor:
    """
    Flat indices of set bits.

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
    """Packed mask of shape `(ceil(numel / 8),)` with the bits at distinct flat indices set."""
    bits = torch.zeros((numel + 7) // 8, dtype=torch.uint8, device=positions.device)
    return bits.scatter_add_(0, positions >> 3, (1 << (positions & 7)).to(torch.uint8))


def encode(bits: Tensor, numel: int) -> tuple[str, Tensor]:
    """
    The shorter code of a packed mask.

    Args:
        bits (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Packed mask.
        numel (`int`): Number of weights.

    Returns:
        `tuple[str, torch.Tensor]`: Name of the coding, of `CODINGS`, and the code, uint8.
    """
    if wagle_kernels.popcount(bits) >= bits.numel():
        return "bits", bits
    code = _encode_gaps(positions_of(bits, numel), numel)
    return ("gaps", code) if code.numel() < bits.numel() else ("bits", bits)


def decode(coding: str, code: Tensor, numel: int) -> Tensor:
    """
    Packed mask of a code. A `ValueError` if the code is not one of so many weights.

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
    """Number of weights that a code selects, without decoding it; the arguments and errors are those of [`decode`]."""
    if coding == "bits":
        return wagle_kernels.popcount(check_bits(code, numel))
    if code.dtype != torch.uint8 or code.dim() != 1:
        raise ValueError(f"needs gaps in one dimension of bytes, got {tuple(code.shape)} of {code.dtype}")
    stops = int((code != _LONG).sum())
    if not len(code) or code[-1] == _LONG or int(code.sum(dtype=torch.int64)) + stops != numel + 1:
        raise ValueError(f"has gaps that do not lead to the end of its {numel} weights")
    return stops - 1


def check_bits(bits: Tensor, numel: int) -> Tensor:
    """`bits`, or a `ValueError` unless they are a packed mask of `numel` weights with no bit beyond them."""
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
    ends = (skipped // _LONG + 1).cumsum(0)
    code = torch.full((int(ends[-1]),), _LONG, dtype=torch.uint8, device=positions.device)
    code[ends - 1] = (skipped % _LONG).to(torch.uint8)
    return code


def _decode_gaps(code: Tensor) -> Tensor:
    is_stop = code != _LONG
    stops = (code.to(torch.int64) + is_stop).cumsum(0)[is_stop] - 1
    return stops[:-1]
