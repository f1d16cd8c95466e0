"""Scores, histograms, partitions and ties of the kernels, against the specification."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import wagle_kernels
from wagle_kernels import FORMULAS, NON_FINITE_KEY, TILE, ScoreSpec

from ..helpers import DEVICE, DTYPES, SPEC, TILED_SIZES, Partition, keys_of, partition, sizes, tensors
from .addresses import FAR, LONG, aligned, far_copy, far_masks, misaligned, on_device
from .marks import interpreter_only, masked_lanes, needs_48_gb

pytestmark = masked_lanes


@pytest.mark.parametrize(
    ("formula", "numel"), [(formula, numel) for formula in FORMULAS for numel in sizes(formula == "wagle")]
)
def test_scores_have_the_bits_of_the_specification(formula, numel):
    spec = ScoreSpec(formula, scale=0.05, seed=9)
    for seed, dtype in enumerate(DTYPES):
        inputs = tensors(numel, dtype, seed)
        expected = keys_of(inputs, spec, offset=5)
        for place in (on_device, lambda values: [misaligned(value) for value in values]):
            scores = wagle_kernels.score(*place(inputs), spec, offset=5, backend="triton")
            assert np.array_equal(scores.cpu().view(torch.int32).numpy(), expected), dtype


def test_scores_that_are_not_finite_or_subnormal_keep_their_keys():
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, -torch.nan])
    for spec in (ScoreSpec("magnitude"), ScoreSpec("gradient")):
        scores = wagle_kernels.score(*on_device([values] * 3), spec, backend="triton")
        assert np.array_equal(scores.cpu().view(torch.int32).numpy(), keys_of([values] * 3, spec))


@pytest.mark.parametrize("offset", [2**31 - 100, 2**32 - 100, 2**32, 2**40 - 7])
@pytest.mark.parametrize("seed", [0, 7, 2**31, -1])
def test_random_scores_cross_a_boundary_of_the_index(seed, offset):
    inputs, spec = (torch.zeros(1001), None, None), ScoreSpec("random", seed=seed)
    scores = wagle_kernels.score(*on_device(inputs), spec, offset=offset, backend="triton")
    assert np.array_equal(scores.cpu().view(torch.int32).numpy(), keys_of(inputs, spec, offset))


def assert_same_histograms(numel, formula="wagle", dtype=torch.bfloat16, offset=11):
    inputs, spec = tensors(numel, dtype, seed=numel), ScoreSpec(formula, scale=0.05, seed=3)
    keys = keys_of(inputs, spec, offset)
    for shift in (24, 16, 8, 0):
        options = dict(shift=shift, prefix=int(keys[0]) >> (shift + 8) if numel else 0, offset=offset)
        ours, theirs = torch.full((256,), 5, device=DEVICE), torch.full((256,), 5)
        wagle_kernels.score_histogram(ours, *on_device(inputs), spec, **options, backend="triton")
        wagle_kernels.score_histogram(theirs, *inputs, spec, **options, backend="reference")
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("numel", TILED_SIZES)
def test_histograms_are_those_of_the_specification(numel):
    assert_same_histograms(numel)


@pytest.mark.parametrize("formula", FORMULAS)
def test_histograms_are_those_of_the_specification_for_every_formula(formula):
    assert_same_histograms(1001, formula, torch.float16, offset=2**32 - 500)


def brackets(keys):
    """Brackets with few keys inside, none inside, all inside, and one key alone."""
    falling = np.sort(keys)[::-1].tolist() or [7]
    middle = falling[len(falling) // 2]
    return {
        "few": (falling[min(len(falling) - 1, 40)], falling[min(len(falling) - 1, 3)]),
        "none": (falling[0] + 1, falling[0] + 2),
        "one": (middle, middle),
    } | ({"all": (0, NON_FINITE_KEY - 1)} if len(keys) < 100 else {})


def assert_same_partition(inputs, spec, low, high, **options):
    ours = partition(inputs, spec, low, high, **options, backend="triton")
    theirs = partition(inputs, spec, low, high, **options)
    assert torch.equal(ours.packed, theirs.packed)
    assert torch.equal(ours.inside, theirs.inside)
    assert ours.counts == theirs.counts
    assert ours.codes == theirs.codes
    return ours


@pytest.mark.parametrize(
    ("dtype", "numel"), [(dtype, numel) for dtype in DTYPES for numel in sizes(dtype == torch.bfloat16)]
)
def test_partitions_are_those_of_the_specification(dtype, numel):
    inputs = tensors(numel, dtype, seed=numel)
    for low, high in brackets(keys_of(inputs, SPEC)).values():
        assert_same_partition(inputs, SPEC, low, high, capacity=numel, numel=numel + 1000, offset=9)


@pytest.mark.parametrize("formula", FORMULAS)
def test_partitions_are_those_of_the_specification_for_every_formula(formula):
    inputs, spec = tensors(TILE + 3, torch.bfloat16), ScoreSpec(formula, scale=0.05, seed=8)
    low, high = brackets(keys_of(inputs, spec, 2**32 - 500))["few"]
    options = dict(capacity=TILE, numel=2**33, offset=2**32 - 500)
    assert_same_partition(inputs, spec, low, high, **options)


@pytest.mark.parametrize("density", [0.001, 0.1])
def test_partitions_in_steps_as_launched_are_those_of_the_specification(density, as_launched):
    inputs = tensors(TILE + 1001)
    keys = np.sort(keys_of(inputs, SPEC))[::-1]
    first = round(density * len(keys))
    assert_same_partition(inputs, SPEC, int(keys[first + 30]), int(keys[first]), capacity=100)


@pytest.mark.parametrize("capacity", [0, 1, 30])
def test_partitions_count_what_exceeds_the_capacity(capacity):
    inputs = tensors(2 * TILE)
    low, high = brackets(keys_of(inputs, SPEC))["few"]
    theirs = partition(inputs, SPEC, low, high, capacity=100)
    ours = partition(inputs, SPEC, low, high, capacity=capacity, backend="triton")
    assert ours.counts == theirs.counts and theirs.counts[1] == 38
    assert torch.equal(ours.packed, theirs.packed) and torch.equal(ours.inside, theirs.inside)
    assert len(ours.codes) == len(set(ours.codes)) == capacity and set(ours.codes) <= set(theirs.codes)


@pytest.mark.parametrize("found", [0, 3, 2**31, 2**32 - 2, 2**33])
def test_candidates_are_never_written_beyond_their_capacity(found):
    """However many were found before: the room left must not wrap around 32 bits."""
    inputs = on_device([tensors(1001)[0], None, None])
    room = torch.full((20,), -1, device=DEVICE)
    candidates = replace(wagle_kernels.Candidates.allocate(0, NON_FINITE_KEY - 1, 1001, 0, DEVICE), codes=room[:7])
    masks = torch.zeros(126, dtype=torch.uint8, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    candidates.counts[1] = found
    for _ in range(2):
        wagle_kernels.score_partition(*masks, candidates, *inputs, ScoreSpec("magnitude"), backend="triton")
    assert candidates.counts.tolist()[:2] == [0, found + 2002]
    assert (room[found:7] >= 0).all() and (room[:found] == -1).all() and (room[7:] == -1).all()


def test_ties_after_more_than_32_bits_of_them_are_not_selected():
    values = torch.ones(3 * TILE, device=DEVICE)
    inside = torch.tensor([2**31 - 1, 2**31 - 1, TILE], dtype=torch.int32, device=DEVICE)  # as of a huge tensor
    packed = torch.zeros(3 * TILE // 8, dtype=torch.uint8, device=DEVICE)
    key = int(torch.tensor(1.0).view(torch.int32))
    wagle_kernels.add_ties(
        packed, inside, values, None, None, ScoreSpec("magnitude"), key=key, ties=5, backend="triton"
    )
    assert wagle_kernels.unpack(packed, 3 * TILE).nonzero().view(-1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_the_largest_key_tells_of_scores_that_are_not_finite(bad):
    values = tensors(TILE + 5)[0]
    values[TILE + 3] = bad
    high = NON_FINITE_KEY - 1
    ours = assert_same_partition((values, None, None), ScoreSpec("magnitude"), high - 1, high, capacity=9)
    assert ours.counts[2] >= NON_FINITE_KEY


def assert_same_ties(inputs, spec, key, ties, offset=0):
    theirs = partition(inputs, spec, key, key, capacity=0, offset=offset)
    ours, inside = aligned(theirs.packed), aligned(theirs.inside)
    options = dict(key=key, ties=ties, offset=offset)
    wagle_kernels.add_ties(ours, inside, *on_device(inputs), spec, **options, backend="triton")
    wagle_kernels.add_ties(theirs.packed, theirs.inside, *inputs, spec, **options, backend="reference")
    assert torch.equal(ours.cpu(), theirs.packed)


@pytest.mark.parametrize("numel", TILED_SIZES)
def test_ties_are_those_of_the_specification(numel):
    values = torch.randint(1, 5, (numel,), generator=torch.Generator().manual_seed(numel)).float()
    values[TILE : 2 * TILE] = 3.0  # a tile without ties
    key = int(torch.tensor(2.0).view(torch.int32))
    equal = int((values == 2).sum())
    for ties in {0, 1, equal // 2, equal - 1, equal, equal + 1, 2**40}:
        assert_same_ties((values, None, None), ScoreSpec("magnitude"), key, ties)


def test_ties_in_steps_as_launched_are_those_of_the_specification(as_launched):
    values = torch.randint(1, 5, (TILE + 1001,), generator=torch.Generator().manual_seed(0)).float()
    for ties in (1000, 2200):
        assert_same_ties((values, None, None), ScoreSpec("magnitude"), int(torch.tensor(2.0).view(torch.int32)), ties)


@pytest.mark.parametrize("formula", FORMULAS)
def test_ties_are_those_of_the_specification_for_every_formula(formula):
    inputs, spec, offset = tensors(1001, torch.bfloat16), ScoreSpec(formula, scale=0.05, seed=8), 2**32 - 500
    inputs = [torch.cat([x, x]) for x in inputs]
    assert_same_ties(inputs, spec, int(keys_of(inputs, spec, offset)[700]), 1, offset)


def select(pieces, spec, k, backend, *, by_ties):
    """Bits of the `k` largest keys over all pieces, found as the trainers' selection does."""
    keys = np.concatenate([keys_of((piece, None, None), spec) for piece in pieces])
    falling = np.sort(keys)[::-1].tolist()
    last = falling[k - 1]
    low, high = (last, last) if by_ties else (falling[min(k + 40, len(keys) - 1)], falling[max(k - 40, 0)])
    device, numel = DEVICE if backend == "triton" else torch.device("cpu"), len(keys)
    candidates = wagle_kernels.Candidates.allocate(low, high, numel, 0 if by_ties else numel, device)
    masks, offset = [], 0
    for piece in pieces:
        values = piece.to(device), None, None
        packed = torch.zeros((piece.numel() + 7) // 8, dtype=torch.uint8, device=device)
        inside = torch.zeros((piece.numel() + TILE - 1) // TILE, dtype=torch.int32, device=device)
        wagle_kernels.score_partition(packed, inside, candidates, *values, spec, offset=offset, backend=backend)
        masks.append((packed, inside, values))
        offset += piece.numel()
    num_above, num_inside, _ = candidates.counts.tolist()
    rank = k - num_above
    for packed, inside, values in masks if by_ties else ():
        wagle_kernels.add_ties(packed, inside, *values, spec, key=last, ties=rank, backend=backend)
        rank = max(rank - int(inside.sum()), 0)
    bits = [wagle_kernels.unpack(packed, v[0].numel(), backend=backend) for packed, _, v in masks]
    bits = torch.cat(bits).cpu()
    if not by_ties:
        bits[candidates.positions_of(candidates.codes[:num_inside].sort().values[:rank]).cpu()] = True
    return bits


@pytest.mark.parametrize("k", [1, 100, 900, 1216])
def test_masks_are_the_same_for_every_backend_and_way(k):
    pieces = [tensors(numel, torch.bfloat16, seed=numel)[0] for numel in (1001, 0, 8, 200, 7)]
    pieces = [(piece * 500).round() / 8 for piece in pieces]  # many ties
    spec = ScoreSpec("magnitude")
    values = torch.cat(pieces).float().abs().numpy()
    expected = np.zeros(len(values), dtype=bool)
    expected[np.lexsort((np.arange(len(values)), -values))[:k]] = True
    for backend in ("reference", "triton"):
        for by_ties in (False, True):
            mask = select(pieces, spec, k, backend, by_ties=by_ties)
            assert np.array_equal(mask.numpy(), expected), (backend, by_ties)


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("formula", ["wagle", "random"])
def test_partitions_and_ties_reach_beyond_32_bits(formula, numel, last_program):
    inputs, spec = tensors(numel, torch.bfloat16), ScoreSpec(formula, scale=0.05)
    keys = np.sort(keys_of(inputs, spec, FAR))[::-1]
    low, high = int(keys[30]), int(keys[3])
    expected = partition(inputs, spec, low, high, capacity=100, numel=FAR + numel, offset=FAR)
    far_inputs = [far_copy(x) for x in inputs]
    packed, inside = far_masks(numel)
    candidates = wagle_kernels.Candidates.allocate(low, high, FAR + numel, 100, DEVICE)
    wagle_kernels.score_partition(packed, inside, candidates, *far_inputs, spec, backend="triton")
    result = Partition(packed[FAR // 8 :], inside[-1:], candidates)
    assert torch.equal(result.packed, expected.packed) and torch.equal(result.inside, expected.inside)
    assert result.counts == expected.counts and result.codes == expected.codes
    for name, mask in (("ours", packed), ("theirs", expected.packed)):
        tied = (far_inputs, inside, 0) if name == "ours" else (inputs, expected.inside, FAR)
        options = dict(key=low, ties=1, offset=tied[2], backend="triton" if name == "ours" else "reference")
        wagle_kernels.add_ties(mask, tied[1], *tied[0], spec, **options)
    assert wagle_kernels.popcount(expected.packed) == 4
    assert torch.equal(packed[FAR // 8 :], expected.packed)
    assert not packed[: numel // 8].any()  # where a short offset would lead


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
def test_histograms_reach_beyond_32_bits(numel, last_program):
    inputs = tensors(numel, torch.bfloat16)
    ours, theirs = (torch.zeros(256, dtype=torch.int64) for _ in range(2))
    far_inputs = [far_copy(x) for x in inputs]
    wagle_kernels.score_histogram(ours, *far_inputs, SPEC, shift=24, backend="triton")
    wagle_kernels.score_histogram(theirs, *inputs, SPEC, shift=24, backend="reference")
    assert torch.equal(ours, theirs)


@pytest.mark.gpu
@needs_48_gb
def test_tensors_of_more_than_2_to_31_elements_are_selected_like_their_halves():
    theta, spec, half = torch.zeros(LONG, dtype=torch.bfloat16, device=DEVICE), ScoreSpec("random", seed=1), 2**30
    key = int(torch.tensor(0.999).view(torch.int32))
    bracket = key, key + 100

    def cut(parts):
        candidates = wagle_kernels.Candidates.allocate(*bracket, LONG, 2**20, DEVICE)
        masks, offset = [], 0
        for part in parts:
            packed = torch.zeros((part.numel() + 7) // 8, dtype=torch.uint8, device=DEVICE)
            inside = torch.zeros((part.numel() + TILE - 1) // TILE, dtype=torch.int32, device=DEVICE)
            wagle_kernels.score_partition(packed, inside, candidates, part, None, None, spec, offset=offset)
            masks.append((packed, inside))
            offset += part.numel()
        codes = candidates.codes[: candidates.counts[1]].sort().values
        return *(torch.cat(column) for column in zip(*masks)), candidates.counts, codes

    for whole, halves in zip(cut([theta]), cut(theta.split(half))):
        assert torch.equal(whole, halves)
