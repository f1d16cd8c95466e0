"""Packed masks: one bit per element."""

from torch import Tensor

from .backends import Backend, checked_backend


def pack(bits: Tensor, out: Tensor | None = None, *, backend: Backend | None = None) -> Tensor:
    """
    Pack booleans into bytes, lowest bit first.

    Args:
        bits (`torch.Tensor` of shape `(numel,)`, bool): Bits.
        out (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, *optional*): Output tensor; by default a new one.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8.
    """
    with checked_backend("pack", backend, bits, out) as module:
        return module.pack(bits, out)


def unpack(packed: Tensor, numel: int, *, backend: Backend | None = None) -> Tensor:
    """Unpack `ceil(numel / 8)` bytes into a boolean tensor of shape `(numel,)`; `backend` as in [`score`]."""
    with checked_backend("unpack", backend, packed) as module:
        return module.unpack(packed, numel)


def popcount(packed: Tensor, *, backend: Backend | None = None) -> int:
    """Count the set bits; `backend` as in [`score`]."""
    with checked_backend("popcount", backend, packed) as module:
        return module.popcount(packed)
