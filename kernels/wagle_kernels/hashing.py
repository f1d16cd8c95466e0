"""Random bits by hashing integers, so that results depend on no generator, device or chunking."""

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF


def fmix32(h):
    """Apply the 32-bit finalizer of MurmurHash3 to an `int`, or to an int64 tensor of uint32 values."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & MASK_32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & MASK_32
    return h ^ (h >> 16)


def uniform(index: Tensor, seed: int) -> Tensor:
    """Hash 64-bit indices to fp32 numbers in [0, 1), multiples of 2**-24."""
    low, high = index & MASK_32, index >> 32
    return (fmix32(low ^ fmix32(high ^ fmix32(seed & MASK_32))) >> 8).to(torch.float32).mul_(2.0**-24)
