"""Moments in 8 bits: floating-point numbers with three bits of mantissa, below a power of two that a group shares.

Their relative error does not depend on how small a moment is within its group. Linear levels would lose the small
moments, and Adam divides by them. The first moment has a sign and 16 octaves, the second moment 32 octaves. The second
moment is rounded stochastically, without bias: its moving average changes by less than a level per step, and would
never change if it were rounded to nearest. A code is the top of an fp32 bit pattern minus that of the lowest level,
which follows from the group's exponent. A state of zeros stands for zeros.
"""

import torch
from torch import Tensor

from ..hashing import MASK_32, fmix32

SIGNED_LEVELS, UNSIGNED_LEVELS = 127, 255
MANTISSA_SHIFT = 20  # 23 bits of mantissa minus the three that are kept
EXPONENT_BIAS = 32  # octaves of the second moment: if the exponent is 0, its lowest level has the pattern 0


def exponent_above(largest: Tensor) -> Tensor:
    """Compute the exponent (uint8) of the power of two above non-negative fp32 numbers and above their next level."""
    above = largest.view(torch.int32) + (1 << MANTISSA_SHIFT)
    return ((above >> 23) + (1 - EXPONENT_BIAS)).clamp_(min=0).to(torch.uint8)


def decode_signed(codes: Tensor, exponents: Tensor) -> Tensor:
    """Decode first moments (fp32) from int8 codes: the sign, and the level above zero."""
    codes = codes.to(torch.int32)
    patterns = codes.abs() + _lowest(exponents, SIGNED_LEVELS) << MANTISSA_SHIFT
    return patterns.view(torch.float32).mul_(codes.sign())


def decode_unsigned(codes: Tensor, exponents: Tensor) -> Tensor:
    """Decode second moments (fp32) from uint8 codes."""
    patterns = codes.to(torch.int32) + _lowest(exponents, UNSIGNED_LEVELS) << MANTISSA_SHIFT
    return patterns.view(torch.float32)


def encode_signed(values: Tensor, exponents: Tensor) -> Tensor:
    """Encode first moments as int8, rounded to the nearest level; zero below the lowest level."""
    rounded = values.abs().view(torch.int32) + (1 << MANTISSA_SHIFT - 1) >> MANTISSA_SHIFT
    levels = (rounded - _lowest(exponents, SIGNED_LEVELS)).clamp_(min=0)
    return torch.where(values < 0, -levels, levels).to(torch.int8)


def encode_unsigned(values: Tensor, exponents: Tensor, random: Tensor) -> Tensor:
    """Encode second moments as uint8, rounded stochastically by 20 random bits; never zero."""
    rounded = values.view(torch.int32) + random >> MANTISSA_SHIFT
    return (rounded - _lowest(exponents, UNSIGNED_LEVELS)).clamp_(min=1).to(torch.uint8)


def _lowest(exponents: Tensor, levels: int) -> Tensor:
    """Compute the pattern of the level of code 0."""
    return (exponents.to(torch.int32) << 23 - MANTISSA_SHIFT) + (UNSIGNED_LEVELS - levels)


def random_bits(start: int, count: int, step: int, device: torch.device) -> Tensor:
    """Draw 20 random bits (int32) for each of `count` compact elements from `start`."""
    hashed = fmix32(torch.arange(start, start + count, device=device) & MASK_32 ^ fmix32(step))
    return (hashed >> 32 - MANTISSA_SHIFT).to(torch.int32)
