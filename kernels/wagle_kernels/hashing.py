"""The one source of random bits: a hash of integers, so that results depend on no generator, device or chunking."""

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF


def mix(h):
    """The 32-bit finaliser of MurmurHash3, of an `int` or of an int64 tensor that holds uint32 values."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & MASK_32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & MASK_32
    return h ^ (h >> 16)


def uniform(index: Tensor, seed: int) -> Tensor:
    """Hash of 64-bit indices as a multiple of 2**-24 in [0, 1), fp32."""
    low, high = index & MASK_32, index >> 32
    return (mix(low ^ mix(high ^ mix(seed & MASK_32))) >> 8).to(torch.float32).mul_(2.0**-24)
