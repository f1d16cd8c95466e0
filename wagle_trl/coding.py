"""Positions of selected weights in few bytes, without loss: one bit a weight, or the gaps between them in a byte each.

A gap code lists, for each selected weight, how many are skipped before it; 255 skips as many and selects none, so that
longer gaps take more bytes. It is the shorter of the two below a density of about 1/8.
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
    selected = torch.zeros(numel, dtype=torch.bool, device=positions.device)
    selected[positions] = True
    return wagle_kernels.pack(selected)


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
    code = _encode_gaps(positions_of(bits, numel))
    return ("gaps", code) if code.numel() < bits.numel() else ("bits", bits)


def decode(coding: str, code: Tensor, numel: int) -> Tensor:
    """
    Packed mask of a code. A `ValueError` if the code is not one that [`encode`] makes for so many weights.

    Args:
        coding (`str`): `"gaps"` or `"bits"`.
        code (`torch.Tensor` of shape `(bytes,)`, uint8): Code.
        numel (`int`): Number of weights.

    Returns:
        `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8.
    """
    if code.dtype != torch.uint8 or code.dim() != 1:
        raise ValueError(f"a code is uint8 with one dimension, got {code.dtype} of shape {tuple(code.shape)}")
    return bits_at(_decode_gaps(code, numel), numel) if coding == "gaps" else check_bits(code, numel)


def check_bits(bits: Tensor, numel: int) -> Tensor:
    """`bits`, or a `ValueError` unless they are a packed mask of `numel` weights with no bit beyond them."""
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((numel + 7) // 8,):
        raise ValueError(
            f"of {numel} weights needs {(numel + 7) // 8} mask bytes, got {tuple(bits.shape)} of {bits.dtype}"
        )
    if numel % 8 and int(bits[-1]) >> numel % 8:
        raise ValueError(f"has mask bits set beyond its {numel} weights")
    return bits


def _encode_gaps(positions: Tensor) -> Tensor:
    skipped = positions.diff(prepend=positions.new_full((1,), -1)) - 1
    ends = (skipped // _LONG + 1).cumsum(0)
    code = torch.full((int(ends[-1]) if len(ends) else 0,), _LONG, dtype=torch.uint8, device=positions.device)
    code[ends - 1] = (skipped % _LONG).to(torch.uint8)
    return code


def _decode_gaps(code: Tensor, numel: int) -> Tensor:
    selects = code != _LONG
    positions = (code.to(torch.int64) + selects).cumsum(0)[selects] - 1
    if code.numel() and (not selects[-1] or int(positions[-1]) >= numel):
        raise ValueError(f"has gaps that lead beyond its {numel} weights")
    return positions
