import itertools
from collections import Counter

import pytest
import torch
from datasets import Dataset

from wagle_trl.data.pairing import PairCollator, PairedRows, PairSampler, check_disjoint

SIZES = [(6, 10), (7, 7), (10, 3), (5, 1), (4, 101)]


def epoch_of(sampler: PairSampler, epoch: int) -> list[tuple[int, int, int]]:
    sampler.epoch = epoch
    return list(sampler)


@pytest.mark.parametrize("num_forget, num_retain", SIZES)
def test_every_forget_row_comes_once_an_epoch(num_forget, num_retain):
    sampler = PairSampler(num_forget, num_retain, seed=3)
    for epoch in range(4):
        pairs = epoch_of(sampler, epoch)
        assert sorted(i for i, _, _ in pairs) == list(range(num_forget))
        assert len(pairs) == len(sampler) == num_forget


@pytest.mark.parametrize("num_forget, num_retain", SIZES)
def test_all_retain_rows_are_seen_before_one_repeats(num_forget, num_retain):
    sampler = PairSampler(num_forget, num_retain, seed=3)
    num_epochs = -(-3 * num_retain // num_forget)
    retain = [j for epoch in range(num_epochs) for _, j, _ in epoch_of(sampler, epoch)]
    for start in range(0, len(retain) - num_retain + 1, num_retain):
        assert sorted(retain[start : start + num_retain]) == list(range(num_retain))


@pytest.mark.parametrize("num_forget, num_retain", SIZES)
def test_pairs_are_a_pure_function_of_seed_and_epoch(num_forget, num_retain):
    walked = PairSampler(num_forget, num_retain, seed=5)
    epochs = [epoch_of(walked, epoch) for epoch in range(3)]
    torch.manual_seed(123)
    assert epoch_of(PairSampler(num_forget, num_retain, seed=5), 2) == epochs[2]
    assert epoch_of(walked, 0) == epochs[0]


def test_an_epoch_can_be_read_in_part_and_again():
    sampler = PairSampler(6, 10, seed=0)
    assert list(itertools.islice(sampler, 3)) == list(sampler)[:3]


def test_seeds_and_epochs_differ():
    orders = {
        (seed, epoch): tuple(epoch_of(PairSampler(20, 30, seed), epoch)) for seed in range(4) for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders)


def test_forget_and_retain_orders_are_independent():
    pairs = [pair for seed in range(50) for pair in PairSampler(8, 8, seed)]
    assert len(Counter(pairs)) > 60  # of 64 combinations; the same permutation for both would give 8


def test_paired_rows_hold_a_row_of_each_set():
    streams = {"forget": Dataset.from_dict({"x": [1, 2]}), "retain": Dataset.from_dict({"x": [10, 20, 30]})}
    rows = PairedRows(streams, 2)
    assert len(rows) == 2
    assert rows[1, 2, 0] == {"forget": {"x": 2}, "retain": {"x": 30}}


def test_every_epoch_takes_the_next_alternate_of_a_forget_row_and_the_one_refusal_of_a_retain_row():
    values = {"alternate": [10, 11, 12, 20, 21, 22], "retain": [5, 6], "retain_refusal": [50, 60]}
    rows = PairedRows({kind: Dataset.from_dict({"x": x}) for kind, x in values.items()}, 2)
    seen = [[row["x"] for row in rows[1, 0, epoch].values()] for epoch in range(4)]
    assert seen == [[20, 5, 50], [21, 5, 50], [22, 5, 50], [20, 5, 50]]


def test_collator_puts_forget_rows_first_and_passes_their_columns_on():
    seen = []

    def collator(rows):
        seen.extend(rows)
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    forget = [{"input_ids": [1], "reference": [0.5, 2.0]}, {"input_ids": [2], "reference": [-1.5]}]
    retain = [{"input_ids": [3]}, {"input_ids": [4]}]
    batch = PairCollator(collator, ["reference"])([{"forget": f, "retain": r} for f, r in zip(forget, retain)])
    assert batch["input_ids"].tolist() == [[1], [2], [3], [4]]
    assert batch["reference"].tolist() == [0.5, 2.0, -1.5]
    assert all(set(row) == {"input_ids"} for row in seen)


def test_rows_in_both_sets_are_named():
    forget = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5]]})
    retain = Dataset.from_dict({"input_ids": [[9], [4, 5], [3]]})
    with pytest.raises(ValueError, match=r"2 rows are in both .* \(first: forget row 2 = retain row 1\)"):
        check_disjoint(forget, retain)
    check_disjoint(forget, Dataset.from_dict({"input_ids": [[1], [2], [5, 4]]}))
