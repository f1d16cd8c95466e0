"""Scores, histograms, partitions and ties of the specification, against numpy and plain Python."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import wagle_kernels
from wagle_kernels import CHUNK, FORMULAS, NON_FINITE_KEY, TILE, Candidates, ScoreSpec

from ..helpers import DTYPES, SIZES, SPEC, TILED_SIZES, keys_of, packed_by_numpy, partition, tensors


def murmur(h):
    h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
    h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
    return h ^ h >> 16


def hash_of(seed, index):
    """The hash in plain Python integers."""
    return (murmur(index % 2**32 ^ murmur(index // 2**32 ^ murmur(seed))) >> 8) / 2**24


INDEPENDENT = {
    "wagle": lambda t, f, r, c: np.abs((t - r / c) * f),
    "gradient": lambda t, f, r, c: np.abs(f),
    "snip": lambda t, f, r, c: np.abs(t) * np.abs(f),
    "product": lambda t, f, r, c: np.abs(f) * np.abs(r),
    "magnitude": lambda t, f, r, c: np.abs(t),
    "ratio": lambda t, f, r, c: np.abs(f) / (np.abs(r) + c),
    "random": lambda t, f, r, c: np.array([hash_of(9, i) for i in range(5, 5 + len(t))], dtype=np.float64),
}


def close_to(formula, scores, theta, forget, retain, scale):
    """Whether scores are those of fp64, up to fp32 rounding; of `wagle` before the subtraction, which may cancel."""
    t, f, r = (x.double().numpy() for x in (theta, forget, retain))
    expected = INDEPENDENT[formula](t, f, r, scale)
    size = (np.abs(t) + np.abs(r / scale)) * np.abs(f) if formula == "wagle" else expected
    return bool((np.abs(scores.double().numpy() - expected) <= 4e-7 * size).all())


def test_every_formula_has_an_independent_expression_here():
    assert set(INDEPENDENT) == set(FORMULAS)


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_scores_follow_their_formula(formula, dtype, numel, chunk):
    inputs = tensors(numel, dtype)
    scores = wagle_kernels.score(*inputs, ScoreSpec(formula, scale=0.05, seed=9), offset=5)
    assert scores.dtype == torch.float32 and scores.shape == (numel,)
    assert close_to(formula, scores, *inputs, scale=0.05)
    assert (scores >= 0).all() and not scores.signbit().any()


@pytest.mark.parametrize("numel", [CHUNK - 1, CHUNK + 3])
def test_scores_do_not_notice_the_default_chunk(numel):
    inputs = tensors(numel)
    assert close_to("wagle", wagle_kernels.score(*inputs, SPEC), *inputs, scale=0.05)


def test_the_scale_of_wagle_is_a_factor_so_that_no_device_divides():
    theta, forget, retain = tensors(1001)
    scores = wagle_kernels.score(theta, forget, retain, SPEC).numpy()
    t, f, r = (x.numpy() for x in (theta, forget, retain))
    assert np.array_equal(scores, np.abs((t - r * np.float32(1 / 0.05)) * f))


def test_scores_leave_their_inputs_alone():
    for formula in FORMULAS:
        inputs = tensors(100)
        wagle_kernels.score(*inputs, ScoreSpec(formula, scale=0.05))
        assert all(torch.equal(a, b) for a, b in zip(inputs, tensors(100))), formula


PINNED = {
    (0, 0): 0,
    (0, 1): 5328424,
    (1, 0): 5707513,
    (7, 123_456_789): 1885833,
    (0, 2**32): 3141468,
    (2**31, 2**40 + 5): 6704543,
}


@pytest.mark.parametrize(("seed", "index"), PINNED)
def test_random_scores_keep_their_values_across_versions(seed, index):
    spec = ScoreSpec("random", seed=seed)
    value = wagle_kernels.score(torch.zeros(1), None, None, spec, offset=index).item()
    assert value * 2**24 == PINNED[seed, index]
    assert value == hash_of(seed, index)


def test_random_scores_depend_on_the_global_index_alone():
    spec = ScoreSpec("random", seed=3)
    whole = wagle_kernels.score(torch.zeros(1000), None, None, spec)
    cuts = [0, 1, 130, 131, 777, 1000]
    parts = [
        wagle_kernels.score(torch.ones(stop - start), None, None, spec, offset=start) for start, stop in pairwise(cuts)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_random_scores_are_uniform_and_differ_between_seeds():
    zeros = torch.zeros(100_000)
    first, second = (wagle_kernels.score(zeros, None, None, ScoreSpec("random", seed=s)).double() for s in (0, 1))
    for values in (first, second):
        assert abs(values.mean() - 1 / 2) < 0.004  # four standard errors
        assert abs(values.var() - 1 / 12) < 0.001
        assert values.min() >= 0 and values.max() < 1
        counts = torch.histc(values, bins=100, min=0, max=1)
        assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi squared with 99 degrees of freedom: p ~ 1e-4
    assert (first == second).sum() < 5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.013
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 0.013


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("numel", SIZES)
def test_histograms_count_each_digit_of_the_keys(numel, bits, chunk):
    theta, forget, retain = tensors(numel)
    spec = ScoreSpec("wagle", scale=0.05)
    keys = wagle_kernels.score(theta, forget, retain, spec).numpy().view(np.uint32)
    for shift in range(32 - bits, -1, -bits):
        prefix = int(keys[0]) >> (shift + bits) if numel else 0
        counts = torch.full((2**bits,), 5)
        wagle_kernels.score_histogram(counts, theta, forget, retain, spec, shift=shift, prefix=prefix)
        chosen = [int(key) for key in keys if int(key) >> (shift + bits) == prefix]
        expected = np.bincount([key >> shift & (2**bits - 1) for key in chosen], minlength=2**bits)
        assert np.array_equal(counts.numpy() - 5, expected)


def bracket_of(keys, first, last):
    """Keys of two ranks, counted from the largest, as (low, high)."""
    falling = np.sort(keys)[::-1]
    return int(falling[min(last, len(keys) - 1)]), int(falling[min(first, len(keys) - 1)])


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("formula", ["wagle", "random", "magnitude"])
def test_partition_sets_what_lies_above_and_collects_what_lies_inside(formula, numel, chunk):
    inputs, spec, offset = tensors(numel, torch.bfloat16), ScoreSpec(formula, scale=0.05, seed=4), 77
    keys = keys_of(inputs, spec, offset)
    low, high = bracket_of(keys, 2, 400) if numel else (5, 9)
    result = partition(inputs, spec, low, high, capacity=numel, numel=numel + 100, offset=offset)
    above, inside = keys > high, (keys >= low) & (keys <= high)
    assert np.array_equal(result.packed.numpy(), packed_by_numpy(above))
    assert result.inside.tolist() == [int(tile.sum()) for tile in np.split(inside, range(TILE, numel, TILE)) if numel]
    assert result.counts == [above.sum(), inside.sum(), keys.max(initial=0)]
    candidates, codes = result.candidates, torch.tensor(result.codes, dtype=torch.int64)
    found = inside.nonzero()[0]
    ranked = sorted((-int(keys[i]), int(i) + offset) for i in found)  # falling keys, equal keys by position
    assert [-candidates.key_of(code) for code in result.codes] == [key for key, _ in ranked]
    assert candidates.positions_of(codes).tolist() == [position for _, position in ranked]


@pytest.mark.parametrize("capacity", [0, 1, 30, 64])
def test_partition_counts_but_does_not_keep_what_exceeds_the_capacity(capacity, chunk):
    inputs = tensors(1001)
    low, high = bracket_of(keys_of(inputs, SPEC), 10, 74)
    everything = partition(inputs, SPEC, low, high, capacity=1001)
    result = partition(inputs, SPEC, low, high, capacity=capacity)
    assert result.counts == everything.counts and result.counts[:2] == [10, 65]
    assert torch.equal(result.packed, everything.packed) and torch.equal(result.inside, everything.inside)
    assert len(result.codes) == capacity and set(result.codes) < set(everything.codes)


def test_partition_appends_to_the_candidates_of_the_tensors_before(chunk):
    candidates = Candidates.allocate(0, NON_FINITE_KEY - 1, 300, 300, torch.device("cpu"))
    values = tensors(300)[0]
    masks = torch.zeros(13, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    for start in (0, 100, 200):
        part = values[start : start + 100]
        wagle_kernels.score_partition(*masks, candidates, part, None, None, ScoreSpec("magnitude"), offset=start)
    assert candidates.counts.tolist() == [0, 300, int(values.abs().max().view(torch.int32))]
    order = candidates.positions_of(candidates.codes.sort().values)
    assert torch.equal(order, values.abs().argsort(descending=True, stable=True))


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("nan")])
def test_the_largest_key_tells_of_scores_that_are_not_finite(bad):
    values = torch.tensor([1.0, bad, 2.0])
    result = partition((values, None, None), ScoreSpec("magnitude"), 0, NON_FINITE_KEY - 1, capacity=3)
    assert result.counts[:2] == [1, 2] and result.counts[2] >= NON_FINITE_KEY


@pytest.mark.parametrize("ties", [0, 1, 3, 70, 100])
def test_ties_are_selected_in_rising_order_on_top_of_what_is_selected(ties, chunk):
    values, spec = torch.tensor([1.0, 2.0, 3.0]).repeat(70), ScoreSpec("magnitude")
    key = int(torch.tensor(2.0).view(torch.int32))
    result = partition((values, None, None), spec, key, key, capacity=0)
    assert result.inside.tolist() == [70]
    wagle_kernels.add_ties(result.packed, result.inside, values, None, None, spec, key=key, ties=ties)
    bits = np.unpackbits(result.packed.numpy(), bitorder="little")
    assert bits.nonzero()[0].tolist() == sorted([*range(2, 210, 3), *range(1, 210, 3)[:ties]])


def test_ties_of_random_scores_are_found_at_their_global_index(chunk):
    inputs, spec, offset = (torch.zeros(1001), None, None), ScoreSpec("random", seed=2), 2**32 - 500
    keys = keys_of(inputs, spec, offset)
    packed, inside = torch.zeros(126, dtype=torch.uint8), torch.ones(1, dtype=torch.int32)
    wagle_kernels.add_ties(packed, inside, *inputs, spec, key=int(keys[700]), ties=1, offset=offset)
    assert np.array_equal(packed.numpy(), packed_by_numpy(np.arange(1001) == 700))
