"""Moments in 8 bits, coded as in [`reference.eight_bit`]."""

# Triton's types do not know that a launch passes constants, and declare sums and maxima as tuples
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import triton
import triton.language as tl

from ..reference.eight_bit import SIGNED_LEVELS, UNSIGNED_LEVELS
from .tiles import fmix32

SIGNED, UNSIGNED = tl.constexpr(SIGNED_LEVELS), tl.constexpr(UNSIGNED_LEVELS)


@triton.jit
def lowest_level(exponents, LEVELS: tl.constexpr):
    """Compute the pattern of the level of code 0."""
    return (exponents.to(tl.int32) << 3) + (UNSIGNED - LEVELS)


@triton.jit
def decode_signed(codes, lowest):
    """Decode first moments (fp32) from int8 codes."""
    codes = codes.to(tl.int32)
    pattern = ((tl.abs(codes) + lowest) << 20) | (codes & -0x80000000)
    return tl.where(codes == 0, 0, pattern).to(tl.float32, bitcast=True)


@triton.jit
def decode_unsigned(codes, lowest):
    """Decode second moments (fp32) from uint8 codes."""
    return ((codes.to(tl.int32) + lowest) << 20).to(tl.float32, bitcast=True)


@triton.jit
def encode_signed(values, lowest):
    """Encode first moments as int8, rounded to the nearest level."""
    rounded = ((values.to(tl.int32, bitcast=True) & 0x7FFFFFFF) + (1 << 19)) >> 20
    level = tl.maximum(rounded - lowest, 0)
    return tl.where(values < 0, -level, level).to(tl.int8)


@triton.jit
def encode_unsigned(values, lowest, random):
    """Encode second moments as uint8, rounded stochastically by 20 random bits."""
    level = ((values.to(tl.int32, bitcast=True) + random) >> 20) - lowest
    return tl.maximum(level, 1).to(tl.uint8)


@triton.jit
def row_exponents(values):
    """
    Compute the exponents of the scales of rows of non-negative numbers. Their bit patterns order like the numbers, and
    a warp reduces integers in one instruction.
    """
    largest = tl.max(values.to(tl.int32, bitcast=True), axis=1)
    return tl.maximum(((largest + (1 << 20)) >> 23) - 31, 0)


@triton.jit
def group_exponents(values, NUM_GROUPS: tl.constexpr, GROUP_ROWS: tl.constexpr):
    """Compute the exponents of the scales of groups of rows."""
    return tl.max(tl.reshape(row_exponents(values), [NUM_GROUPS, GROUP_ROWS]), axis=1)


@triton.jit
def by_row(groups, GROUP_ROWS: tl.constexpr):
    """Repeat the value of each group for its rows, to shape `[ROWS, 1]`."""
    rows = tl.broadcast_to(groups[:, None], [groups.shape[0], GROUP_ROWS])
    return tl.reshape(rows, [groups.shape[0] * GROUP_ROWS])[:, None]


@triton.jit
def random_bits(start, rank, seed):
    """Draw 20 random bits (int32) for each compact element."""
    h = fmix32((start.to(tl.uint32) + rank.to(tl.uint32)) ^ seed.to(tl.uint32, bitcast=True))
    return (h >> 12).to(tl.int32, bitcast=True)
