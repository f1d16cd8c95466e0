"""Pairs of forget and retain rows: every forget row once per epoch, in an order that is the same after a restart."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler


class PairedRows(torch.utils.data.Dataset):
    """Data set whose item `(i, j)` is the pair of rows `(forget[i], retain[j])`."""

    def __init__(self, forget: Dataset, retain: Dataset):
        self.forget, self.retain = forget, retain

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.forget[pair[0]], self.retain[pair[1]]


class PairSampler(Sampler[tuple[int, int]]):
    """
    Sampler of index pairs: a pure function of the seed and the epoch.

    Forget rows are permuted every epoch. Retain rows come from an endless sequence of permutations. Each epoch continues
    where the last one ended, so that all rows of a larger retain set are seen before one repeats.

    Args:
        num_forget, num_retain (`int`): Numbers of forget and retain rows.
        seed (`int`): Seed of the permutations.
    """

    def __init__(self, num_forget: int, num_retain: int, seed: int):
        self.num_forget, self.num_retain, self.seed = num_forget, num_retain, seed
        self.epoch = 0  # set by the trainer: not all wrappers of samplers forward `set_epoch` after a resume

    def __len__(self) -> int:
        return self.num_forget

    def __iter__(self) -> Iterator[tuple[int, int]]:
        forget = self._permutation(self.num_forget, stream=0, block=self.epoch)
        return zip(forget, self._retain_rows(), strict=False)

    def _retain_rows(self) -> Iterator[int]:
        block, position = divmod(self.epoch * self.num_forget, self.num_retain)
        while True:
            yield from self._permutation(self.num_retain, stream=1, block=block)[position:]
            block, position = block + 1, 0

    def _permutation(self, n: int, stream: int, block: int) -> list[int]:
        return np.random.default_rng((self.seed, stream, block)).permutation(n).tolist()


class PairCollator:
    """
    Collate pairs into one batch: the forget rows, then as many retain rows.

    Args:
        collator (callable): Collator of single rows.
        columns (`list[str]`, *optional*): Columns of forget rows that hold lists of numbers. Each is concatenated.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], columns: list[str] | None = None):
        self.collator, self.columns = collator, columns or []

    def __call__(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, torch.Tensor]:
        forget, retain = zip(*pairs, strict=True)
        extras = {name: torch.tensor([value for row in forget for value in row[name]]) for name in self.columns}
        rows = [{key: value for key, value in row.items() if key not in self.columns} for row in (*forget, *retain)]
        return {**self.collator(rows), **extras}


def check_disjoint(forget: Dataset, retain: Dataset, names: tuple[str, str] = ("forget", "retain")) -> None:
    """Raise a `ValueError` if a tokenized row is in both sets, which have these names."""
    rows = {tuple(ids): i for i, ids in enumerate(forget["input_ids"])}
    shared = [(rows[ids], j) for j, ids in enumerate(map(tuple, retain["input_ids"])) if ids in rows]
    if shared:
        raise ValueError(
            f"{len(shared)} rows are in both the {names[0]} and the {names[1]} set (first: {names[0]} row {shared[0][0]} = "
            f"{names[1]} row {shared[0][1]}); remove them from one."
        )
