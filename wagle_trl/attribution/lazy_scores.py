"""`LazyScores`: the scores of all weights in scope, computed where they are read and never stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import ScoreSpec


@dataclass(frozen=True)
class Piece:
    """
    One parameter of a scope, flat.

    Args:
        name (`str`): Parameter name.
        offset (`int`): Index of its first weight in the whole scope.
        theta (`torch.Tensor` of shape `(numel,)`): Weights.
        scores ([`LazyScores`]): Scores of the whole scope, with the statistics.
    """

    name: str
    offset: int
    theta: Tensor
    scores: "LazyScores"

    @property
    def numel(self) -> int:
        return self.theta.numel()

    def read(self, stride: int = 1) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Every `stride`-th weight and its statistics, flat. Statistics kept elsewhere are moved to the weights' device."""
        forget, retain = (self._statistic(kept, stride) for kept in (self.scores.forget, self.scores.retain))
        return self.theta[::stride], forget, retain

    def _statistic(self, kept: Mapping[str, Tensor] | None, stride: int) -> Tensor | None:
        if kept is None:
            return None
        # A sample is copied: a view would keep the whole mapped file in memory
        statistic = kept[self.name].view(-1)[::stride].contiguous().to(self.theta.device)
        return statistic.sqrt() if self.scores.root else statistic


@dataclass(frozen=True)
class LazyScores:
    """
    Scores of all weights in scope. They are computed chunk by chunk where they are read, and never stored.

    Args:
        parameters (`dict[str, torch.Tensor]`): Weights in scope, in model order.
        spec ([`wagle_kernels.ScoreSpec`]): Formula, scale and seed.
        forget, retain (mapping of `str` to `torch.Tensor`, *optional*):
            fp32 statistics of the same shapes, if the formula reads them. They may lie on any device: one parameter at
            a time is moved to the device of the weights.
        root (`bool`, *optional*, defaults to `False`): Whether the formula reads the square roots of the statistics.
    """

    parameters: Mapping[str, Tensor]
    spec: ScoreSpec
    forget: Mapping[str, Tensor] | None = None
    retain: Mapping[str, Tensor] | None = None
    root: bool = False

    @cached_property
    def pieces(self) -> list[Piece]:
        """The parameters in scope, flat, in model order."""
        pieces, offset = [], 0
        for name, parameter in self.parameters.items():
            pieces.append(Piece(name, offset, parameter.detach().reshape(-1), self))
            offset += parameter.numel()
        return pieces

    @cached_property
    def numel(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def by_device(self) -> list[list[Piece]]:
        """The pieces, grouped by device."""
        groups: dict[torch.device, list[Piece]] = {}
        for piece in self.pieces:
            groups.setdefault(piece.theta.device, []).append(piece)
        return list(groups.values())

    def sample(self, stride: int) -> Tensor:
        """Scores of every `stride`-th weight, in descending order."""
        samples = []
        for pieces in self.by_device():
            theta, *statistics = zip(*(piece.read(stride) for piece in pieces))
            forget, retain = (None if parts[0] is None else torch.cat(parts) for parts in statistics)
            scores = wagle_kernels.score(torch.cat(theta), forget, retain, self.spec)
            samples.append(scores.to(self.pieces[0].theta.device))
        return torch.cat(samples).sort(descending=True).values

    def check_finite(self) -> None:
        """Raise a `ValueError` that names the first parameter with a NaN or infinite score."""
        for piece in self.pieces:
            if not wagle_kernels.score(*piece.read(), self.spec, offset=piece.offset).isfinite().all():
                raise ValueError(
                    f"The score of '{piece.name}' is NaN or infinite, because its weights or gradients are. Check the "
                    "model and the data, or load the model in bfloat16 or float32."
                )
