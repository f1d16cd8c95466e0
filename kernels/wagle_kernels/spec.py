"""Definitions shared by both backends: score formulas, the keys that order scores, and the split of an fp32 master."""

from dataclasses import dataclass

import torch
from torch import Tensor

NON_FINITE_KEY = 0x7F800000
"""Bits of +inf: the keys of inf and NaN are not below it."""

FORMULAS = ("wagle", "gradient", "snip", "product", "magnitude", "random", "ratio")
"""Names of the formulas that a [`ScoreSpec`] may have."""


@dataclass(frozen=True)
class ScoreSpec:
    """
    Pointwise score of `theta` and the two accumulated statistics. It is computed in fp32 without fused multiply-adds,
    so that its bits are the same on every device.

    Args:
        formula (`str`):
            One of `FORMULAS`, where `f` and `r` are the forget and retain statistics and `c` is the scale:
            `wagle` `|(theta - r * (1 / c)) * f|`, `gradient` `|f|`, `snip` `|theta * f|`, `product` `|f * r|`,
            `magnitude` `|theta|`, `ratio` `|f| / (|r| + c)`, `random` a hash of the seed and the global index.
        scale (`float`, *optional*, defaults to `1.0`):
            `c` above: the Hessian scale of `wagle`, or the additive constant of `ratio`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the hash of `random`.
    """

    formula: str
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.formula not in FORMULAS:
            raise ValueError(f"Unknown formula '{self.formula}'; expected one of {', '.join(FORMULAS)}.")


@dataclass(frozen=True)
class Candidates:
    """
    Keys inside a bracket, which one pass over the scores collects in any order and leaves to be ranked.

    A candidate is one integer, `(high - key) << position_bits | global index`. The smallest ranks first, so equal keys
    are ranked by their index.

    Args:
        low, high (`int`): Lowest and highest key of the bracket.
        position_bits (`int`): Number of bits of a global index.
        codes (`torch.Tensor` of shape `(capacity,)`, int64): Candidates.
        counts (`torch.Tensor` of shape `(3,)`, int64):
            Number of keys above the bracket, number of keys inside it (including those beyond the capacity, which are
            not kept), and the largest of all keys.
    """

    low: int
    high: int
    position_bits: int
    codes: Tensor
    counts: Tensor

    @classmethod
    def allocate(cls, low: int, high: int, numel: int, capacity: int, device: torch.device) -> "Candidates":
        """Make an empty collection for `numel` weights. A bracket too wide for the codes loses its lower end."""
        position_bits = max(numel - 1, 0).bit_length()
        low = max(low, high - (1 << 63 - position_bits) + 1)
        codes = torch.empty(capacity, dtype=torch.int64, device=device)
        return cls(low, high, position_bits, codes, torch.zeros(3, dtype=torch.int64, device=device))

    def key_of(self, code: int) -> int:
        """Return the key of a candidate."""
        return self.high - (code >> self.position_bits)

    def positions_of(self, codes: Tensor) -> Tensor:
        """Return the global indices of candidates."""
        return codes & (1 << self.position_bits) - 1


def join_split(high: Tensor, low: Tensor) -> Tensor:
    """Join bf16 weights and int16 remainders to fp32 masters: the weight's bits, shifted by 16, plus the remainder."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """
    Split fp32 masters into bf16 weights and int16 remainders. Weights are rounded to nearest, halves away from zero,
    so that the remainder fits.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)
