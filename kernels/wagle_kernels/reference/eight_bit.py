"""Moments in 8 bits: small floating-point numbers, three bits of mantissa below a power of two that a group shares.

Their relative error is the same however small a moment is beside its group: linear levels lose the small ones, and Adam
divides by them. The first moment has a sign and 16 octaves, the second 32 octaves. The second is rounded at random,
without bias: its moving average changes by less than a level in a step and would stand still if rounded to the nearest.
A code is the top of an fp32 bit pattern, less that of the lowest level, which follows from the group's exponent. State
of zeros stands for zeros.
"""

import torch
from torch import Tensor

from ..hashing import MASK_32, mix

SIGNED_LEVELS, UNSIGNED_LEVELS = 127, 255
MANTISSA_SHIFT = 20  # 23 bits of mantissa less the three that are kept
EXPONENT_BIAS = 32  # octaves of the second moment: its lowest level has the pattern 0 where the exponent is 0


def exponent_above(largest: Tensor) -> Tensor:
    """Exponent (uint8) of the power of two above fp32 numbers that are not negative, and above the next level."""
    above = largest.view(torch.int32) + (1 << MANTISSA_SHIFT)
    return ((above >> 23) + (1 - EXPONENT_BIAS)).clamp_(min=0).to(torch.uint8)


def decode_signed(codes: Tensor, exponents: Tensor) -> Tensor:
    """First moments (fp32) of int8 codes: the sign, and the level above zero."""
    codes = codes.to(torch.int32)
    patterns = codes.abs() + _lowest(exponents, SIGNED_LEVELS) << MANTISSA_SHIFT
    return patterns.view(torch.float32).mul_(codes.sign())


def decode_unsigned(codes: Tensor, exponents: Tensor) -> Tensor:
    """Second moments (fp32) of uint8 codes."""
    patterns = codes.to(torch.int32) + _lowest(exponents, UNSIGNED_LEVELS) << MANTISSA_SHIFT
    return patterns.view(torch.float32)


def encode_signed(values: Tensor, exponents: Tensor) -> Tensor:
    """Codes (int8) of first moments, rounded to the nearest level; zero below the lowest."""
    rounded = values.abs().view(torch.int32) + (1 << MANTISSA_SHIFT - 1) >> MANTISSA_SHIFT
    levels = (rounded - _lowest(exponents, SIGNED_LEVELS)).clamp_(min=0)
    return torch.where(values < 0, -levels, levels).to(torch.int8)


def encode_unsigned(values: Tensor, exponents: Tensor, random: Tensor) -> Tensor:
    """Codes (uint8) of second moments, rounded at random, never zero; `random` has 20 bits."""
    rounded = values.view(torch.int32) + random >> MANTISSA_SHIFT
    return (rounded - _lowest(exponents, UNSIGNED_LEVELS)).clamp_(min=1).to(torch.uint8)


def _lowest(exponents: Tensor, levels: int) -> Tensor:
    """Pattern of the level of code 0."""
    return (exponents.to(torch.int32) << 23 - MANTISSA_SHIFT) + (UNSIGNED_LEVELS - levels)


def random_of(start: int, count: int, step: int, device: torch.device) -> Tensor:
    """20 random bits (int32) for each of the compact elements from `start`."""
    hashed = mix(torch.arange(start, start + count, device=device) & MASK_32 ^ mix(step))
    return (hashed >> 32 - MANTISSA_SHIFT).to(torch.int32)
