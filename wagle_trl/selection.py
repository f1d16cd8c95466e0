"""Scores and a density to the exact global top-k, as a `WeightMask`. No sort, no copy of all scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import NON_FINITE_KEY, RADIX_BITS, ScoreSpec

from .mask import WeightMask


@dataclass(frozen=True)
class Threshold:
    """
    Where the selection cuts.

    Args:
        key (`int`): fp32 bit pattern of the k-th largest score.
        ties (`int`): How many of the scores equal to it are selected, in model order, then rising flat index.
        k (`int`): Number of selected weights.
    """

    key: int
    ties: int
    k: int

    @property
    def value(self) -> float:
        """The k-th largest score."""
        return torch.tensor(self.key, dtype=torch.int32).view(torch.float32).item()


@dataclass(frozen=True)
class Scored:
    """
    A score over a scope, evaluated chunk by chunk wherever it is read and never stored.

    Args:
        parameters (`dict[str, torch.Tensor]`): Weights in scope, in model order.
        forget, retain (`dict[str, torch.Tensor]`, *optional*):
            fp32 statistics of the same shapes, where the formula reads them.
        spec ([`wagle_kernels.ScoreSpec`]): Formula, scale and seed.
    """

    parameters: Mapping[str, Tensor]
    spec: ScoreSpec
    forget: Mapping[str, Tensor] | None = None
    retain: Mapping[str, Tensor] | None = None

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def pieces(self):
        """Per parameter: its name, its global offset and the flat tensors that the kernels take."""
        offset = 0
        for name, parameter in self.parameters.items():
            statistics = [None if s is None else s[name].view(-1) for s in (self.forget, self.retain)]
            yield name, offset, (parameter.detach().reshape(-1), *statistics, self.spec)
            offset += parameter.numel()

    def histogram(self, shift: int, prefix: int) -> Tensor:
        """Counts of the key digit at `shift` among the keys that start with `prefix`, over the whole scope."""
        total = torch.zeros(2**RADIX_BITS, dtype=torch.int64)
        for _, offset, tensors in self.pieces():
            counts = torch.zeros_like(total, device=tensors[0].device)
            wagle_kernels.score_histogram(counts, *tensors, shift=shift, prefix=prefix, offset=offset)
            total += counts.cpu()
        return total

    def refuse_non_finite(self) -> None:
        """Raise a `ValueError` that names the first parameter with a NaN or infinite score."""
        for name, offset, tensors in self.pieces():
            if not wagle_kernels.score(*tensors, offset=offset).isfinite().all():
                raise ValueError(
                    f"The score of '{name}' is NaN or infinite: its weights or gradients are. Check the model and the "
                    "data, or load the model in bfloat16 or float32."
                )


def num_to_select(density: float, numel: int) -> int:
    """`round(density * numel)`; a `ValueError` if the density is not in (0, 1] or selects nothing."""
    if not 0 < density <= 1:
        raise ValueError(f"mask_density must be in (0, 1], got {density}.")
    k = round(density * numel)
    if k == 0:
        raise ValueError(f"mask_density {density} of {numel} weights selects none; raise it.")
    return k


def find_threshold(scored: Scored, k: int) -> Threshold:
    """
    Exact key of the k-th largest score by radix selection: a histogram of the highest digit of all keys, then of the
    next digit of those that share it, until the key is complete.
    """
    prefix, remaining = 0, k
    for shift in range(32 - RADIX_BITS, -1, -RADIX_BITS):
        counts = scored.histogram(shift, prefix)
        if prefix == 0 and counts[NON_FINITE_KEY >> shift :].any():
            scored.refuse_non_finite()
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= remaining).nonzero()[-1])
        remaining -= int(at_least[digit] - counts[digit])
        prefix = prefix << RADIX_BITS | digit
    return Threshold(prefix, remaining, k)


def select(scored: Scored, density: float, info: Mapping[str, str] | None = None) -> WeightMask:
    """
    Select the `round(density * numel)` weights with the largest scores over the whole scope.

    Equal scores: the earlier parameter wins, then the lower flat index; so the mask has exactly that many bits and is
    the same for any chunking and device.

    Args:
        scored ([`Scored`]): What to rank.
        density (`float`): Share to select, in (0, 1].
        info (`dict[str, str]`, *optional*): Carried by the mask; the threshold is added.

    Returns:
        [`WeightMask`]: On the device of each parameter.
    """
    threshold = find_threshold(scored, num_to_select(density, scored.numel))
    bits, shapes, ties = {}, {}, threshold.ties
    for name, offset, tensors in scored.pieces():
        bits[name], used = wagle_kernels.score_threshold(*tensors, key=threshold.key, ties=ties, offset=offset)
        shapes[name] = tuple(scored.parameters[name].shape)
        ties -= used
    return WeightMask(bits, shapes, {**(info or {}), "threshold": repr(threshold.value)})
