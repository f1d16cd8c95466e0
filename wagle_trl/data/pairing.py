"""Rows of every kind that go through the model together: each forget row once per epoch, in an order that is the same after a restart."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

Index = tuple[int, int, int]  # forget row, retain row, epoch
Rows = dict[str, dict[str, Any]]


class PairedRows(torch.utils.data.Dataset):
    """
    Data set whose item `(i, j, epoch)` holds a row of every stream, by its name and in their order.

    Args:
        streams (`dict[str, Dataset]`):
            Rows of each kind. Those of `alternate` belong to the forget rows: the same number of them to each, one after
            the other, of which every epoch takes the next. Those of `retain_refusal` belong to the retain rows, one each.
        num_forget (`int`): Number of forget rows.
    """

    def __init__(self, streams: Mapping[str, Dataset], num_forget: int):
        self.streams, self.num_forget = streams, num_forget

    def __len__(self) -> int:
        return self.num_forget

    def __getitem__(self, index: Index) -> Rows:
        forget, retain, epoch = index
        positions = {"forget": forget, "retain": retain, "retain_refusal": retain}
        if "alternate" in self.streams:
            per_row = len(self.streams["alternate"]) // self.num_forget
            positions["alternate"] = forget * per_row + epoch % per_row
        return {name: rows[positions[name]] for name, rows in self.streams.items()}


class PairSampler(Sampler[Index]):
    """
    Sampler of forget row, retain row and epoch: a pure function of the seed and the epoch.

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

    def __iter__(self) -> Iterator[Index]:
        epoch = self.epoch
        forget = self._permutation(self.num_forget, stream=0, block=epoch)
        return ((i, j, epoch) for i, j in zip(forget, self._retain_rows(epoch), strict=False))

    def _retain_rows(self, epoch: int) -> Iterator[int]:
        block, position = divmod(epoch * self.num_forget, self.num_retain)
        while True:
            yield from self._permutation(self.num_retain, stream=1, block=block)[position:]
            block, position = block + 1, 0

    def _permutation(self, n: int, stream: int, block: int) -> list[int]:
        return np.random.default_rng((self.seed, stream, block)).permutation(n).tolist()


class PairCollator:
    """
    Collate items of [`PairedRows`] into one batch: all rows of the first stream, then all of the next.

    Args:
        collator (callable): Collator of single rows.
        columns (`list[str]`, *optional*): Columns that hold lists of numbers, in some streams. Each is concatenated.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], columns: list[str] | None = None):
        self.collator, self.columns = collator, columns or []

    def __call__(self, items: list[Rows]) -> dict[str, torch.Tensor]:
        rows = [item[name] for name in items[0] for item in items]
        extras = {name: torch.tensor([x for row in rows for x in row.get(name, ())]) for name in self.columns}
        return {**self.collator([{k: v for k, v in row.items() if k not in self.columns} for row in rows]), **extras}


def check_disjoint(forget: Dataset, retain: Dataset, names: tuple[str, str] = ("forget", "retain")) -> None:
    """Raise a `ValueError` if a tokenized row is in both sets, which have these names."""
    rows = {tuple(ids): i for i, ids in enumerate(forget["input_ids"])}
    shared = [(rows[ids], j) for j, ids in enumerate(map(tuple, retain["input_ids"])) if ids in rows]
    if shared:
        raise ValueError(
            f"{len(shared)} rows are in both the {names[0]} and the {names[1]} set (first: {names[0]} row {shared[0][0]} = "
            f"{names[1]} row {shared[0][1]}); remove them from one."
        )
