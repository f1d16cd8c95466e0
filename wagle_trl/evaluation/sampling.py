"""Sampling that a batch, its padding and a restart do not change: each text has a random stream of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

Seed = tuple[int, ...]


class GumbelNoise(LogitsProcessor):
    r"""
    Make greedy generation sample: the token of the largest \\( z / T + g \\), where \\( g \\) is Gumbel noise, is drawn
    from \\( \mathrm{softmax}(z / T) \\).

    Where [`~transformers.GenerationMixin.generate`] samples itself, all texts of a batch share one random stream.

    Args:
        temperature (`float`): Temperature \\( T \\), above 0.
        seeds (`list[tuple[int, ...]]`): Seed of the stream of each text in the batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[Seed]):
        self.temperature = temperature
        self.streams = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add noise to scores of shape `(batch_size, vocab_size)`."""
        # In double precision: 0, whose noise would be infinite, is drawn once in 2^53 times
        noise = np.stack([-np.log(stream.standard_exponential(scores.shape[-1])) for stream in self.streams])
        return scores.float() / self.temperature + torch.from_numpy(noise).float().to(scores.device)  # pyright: ignore[reportReturnType]
