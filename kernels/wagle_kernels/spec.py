"""What both backends agree on: the score formulas, the key that scores are ordered by, and the split of an fp32 master."""

from dataclasses import dataclass

import torch
from torch import Tensor

NON_FINITE_KEY = 0x7F800000  # bits of +inf: NaN and inf have keys from here on

FORMULAS = ("wagle", "gradient", "snip", "product", "magnitude", "random", "ratio")


@dataclass(frozen=True)
class ScoreSpec:
    """
    A pointwise score of `theta` and the two accumulated statistics, computed in fp32 without fused multiply-adds, so
    that its bits are the same on every device.

    Args:
        formula (`str`):
            One of `FORMULAS`. With `f` and `r` the forget and retain statistics and `c` the scale:
            `wagle` `|(theta - r * (1 / c)) * f|`, `gradient` `|f|`, `snip` `|theta * f|`, `product` `|f * r|`,
            `magnitude` `|theta|`, `ratio` `|f| / (|r| + c)`, `random` a hash of the seed and the global index.
        scale (`float`, *optional*, defaults to `1.0`):
            `c` above: the Hessian scale of `wagle`, the additive constant of `ratio`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of `random`.
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
    What one pass over the scores leaves to be ranked: the keys inside a bracket, in any order.

    A candidate is one integer, `(high - key) << position_bits | global index`: the smallest comes first, so that equal
    keys are ranked by their index.

    Args:
        low, high (`int`): Lowest and highest key of the bracket.
        position_bits (`int`): Bits of a global index.
        codes (`torch.Tensor` of shape `(capacity,)`, int64): Candidates.
        counts (`torch.Tensor` of shape `(3,)`, int64):
            How many keys lie above the bracket, how many inside (also those beyond the capacity, which are not
            kept), and the largest key of all.
    """

    low: int
    high: int
    position_bits: int
    codes: Tensor
    counts: Tensor

    @classmethod
    def allocate(cls, low: int, high: int, numel: int, capacity: int, device: torch.device) -> "Candidates":
        """No candidates yet, of a scope of `numel` weights; a bracket wider than the codes loses its lower end."""
        position_bits = max(numel - 1, 0).bit_length()
        low = max(low, high - (1 << 63 - position_bits) + 1)
        codes = torch.empty(capacity, dtype=torch.int64, device=device)
        return cls(low, high, position_bits, codes, torch.zeros(3, dtype=torch.int64, device=device))

    def key_of(self, code: int) -> int:
        """Key of a candidate."""
        return self.high - (code >> self.position_bits)

    def positions_of(self, codes: Tensor) -> Tensor:
        """Global indices of candidates."""
        return codes & (1 << self.position_bits) - 1


def join_split(high: Tensor, low: Tensor) -> Tensor:
    """fp32 master from its bf16 weight and int16 remainder: the weight's bits moved up by 16, plus the remainder."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 weight (nearest, halves away from zero so that the remainder fits) and int16 remainder of an fp32 master."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)
