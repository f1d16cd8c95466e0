"""The specification of every op, against numpy, plain torch, or another way to compute the same."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wagle_kernels
from wagle_kernels import CHUNK, FORMULAS, NON_FINITE_KEY, TILE, Candidates, Layout, ScoreSpec, join_split, split
from wagle_kernels.reference import chunking, compaction

from .helpers import (
    CALLS,
    DTYPES,
    SIZES,
    SPEC,
    STEP,
    TILED_SIZES,
    State,
    bits_of,
    keys_of,
    make_layout,
    packed_by_numpy,
    partition,
    random_bits,
    random_patterns,
    tensors,
)

NUMELS = [*TILED_SIZES, 0]  # of the tensors of one layout
CODINGS = ["indices", "bits"]


@pytest.fixture(params=[64, CHUNK], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    """Work in pieces of the default size, and of one that every input above 64 elements, or of two tiles, crosses."""
    monkeypatch.setattr(chunking.chunks, "__defaults__", (request.param,))
    if request.param < CHUNK:
        monkeypatch.setattr(compaction, "RUN_SELECTED", TILE)
        monkeypatch.setattr(compaction, "RUN_TILES", 1)
    return request.param


# Scores


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


def test_an_unknown_formula_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown formula 'hessian'; expected one of wagle, gradient, .*, ratio"):
        wagle_kernels.score(*tensors(4), ScoreSpec("hessian"))


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


# Histograms and thresholds


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


@pytest.mark.parametrize("numel", [0, 1, 2, 2**32, 2**32 + 1, 2**40])
def test_a_bracket_wider_than_the_codes_loses_only_its_lower_end(numel):
    high = NON_FINITE_KEY - 1
    candidates = Candidates.allocate(0, high, numel, 0, torch.device("cpu"))
    last = max(numel - 1, 0)
    assert candidates.position_bits == last.bit_length() and candidates.high == high
    largest = (high - candidates.low << candidates.position_bits) + last
    assert largest < 2**63
    assert candidates.low == 0 or largest + (1 << candidates.position_bits) >= 2**63  # not one key more than needed
    assert candidates.key_of(largest) == candidates.low
    assert candidates.positions_of(torch.tensor([largest])).tolist() == [last]
    narrow = Candidates.allocate(high - 5, high, numel, 0, torch.device("cpu"))
    assert (narrow.low, narrow.high) == (high - 5, high)


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


# Bit masks


@given(numel=st.integers(0, 300), density=st.sampled_from([0.0, 0.03, 0.5, 1.0]), seed=st.integers(0, 2**31))
def test_packing_is_numpys_little_bit_order_and_unpacking_undoes_it(numel, density, seed):
    bits = random_bits(numel, density, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking.chunks, "__defaults__", (64,))
        packed = wagle_kernels.pack(bits)
        assert np.array_equal(packed.numpy(), np.packbits(bits.numpy(), bitorder="little"))
        assert torch.equal(wagle_kernels.unpack(packed, numel), bits)
        assert wagle_kernels.popcount(packed) == int(bits.sum())


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_packing_takes_views_at_any_storage_offset(offset):
    bits = random_bits(1000)[offset:]
    assert np.array_equal(wagle_kernels.pack(bits).numpy(), np.packbits(bits.numpy(), bitorder="little"))


def test_popcount_is_right_for_every_byte_and_over_chunks():
    for byte in range(256):
        assert wagle_kernels.popcount(torch.tensor([byte], dtype=torch.uint8)) == byte.bit_count()
    assert wagle_kernels.popcount(torch.full((CHUNK + 5,), 0xFF, dtype=torch.uint8)) == 8 * (CHUNK + 5)


# Dense <-> compact


def masks_of(density, numels=NUMELS):
    return [random_bits(numel, density, seed=i) for i, numel in enumerate(numels)]


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_gathers_in_rising_order(coding, out_dtype, dtype, density, chunk):
    masks = masks_of(density)
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), dtype, seed=tensor)[0]
        expected = dense[mask].to(out_dtype)
        out = torch.full_like(expected, 3.0)
        assert wagle_kernels.compress(dense, layout, tensor, out) is out
        assert torch.equal(out, expected)
        wagle_kernels.compress(dense, layout, tensor, out, accumulate=True)
        assert torch.equal(out, (expected.float() + dense[mask].float()).to(out_dtype))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_leaves_partial_sums_of_the_squares_of_its_result(coding, dtype, accumulate, chunk):
    masks = [*masks_of(0.1), torch.arange(3 * TILE) >= 2 * TILE]
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), seed=tensor)[0]
        out = torch.ones(int(mask.sum()), dtype=dtype)
        squares = torch.full((-(-mask.numel() // TILE),), torch.nan)  # overwritten
        wagle_kernels.compress(dense, layout, tensor, out, accumulate=accumulate, squares=squares)
        torch.testing.assert_close(squares.double().sum(), out.double().square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_undoes_compress_and_keeps_every_other_bit(coding, dtype, density, chunk):
    masks = masks_of(density)
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        original = random_patterns(mask.numel(), dtype, seed=tensor)
        dense = original.clone()
        compact = wagle_kernels.compress(dense, layout, tensor, torch.empty(int(mask.sum()), dtype=dtype))
        assert wagle_kernels.scatter(dense, layout, tensor, compact) is dense
        assert torch.equal(bits_of(dense), bits_of(original))
        wagle_kernels.scatter(dense, layout, tensor, torch.ones_like(compact))
        assert torch.equal(bits_of(dense)[~mask], bits_of(original)[~mask])
        assert (dense[mask] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", SIZES)
def test_accumulate_adds_gradients_or_their_squares_in_fp32(numel, dtype, chunk):
    _, first, second = (t.to(dtype) for t in tensors(numel))
    total, squares = torch.zeros(numel), torch.zeros(numel)
    for grad in (first, second):
        assert wagle_kernels.accumulate(total, grad) is total
        wagle_kernels.accumulate(squares, grad, squared=True)
    torch.testing.assert_close(total, first.float() + second.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(squares, first.float() ** 2 + second.float() ** 2, rtol=1e-6, atol=0)


# Split master

EDGES = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 1e-40, 3.4028235e38, -3.4028235e38]
    + [float("inf"), float("-inf"), float("nan"), 1.00390625, -1.00390625, 1.01171875, 3.3e38]
)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_splitting_and_joining_a_master_keeps_any_32_bits(patterns):
    master = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    assert torch.equal(join_split(*split(master)).view(torch.int32), master.view(torch.int32))


def test_splitting_and_joining_keeps_edges_and_a_million_random_patterns():
    patterns = torch.randint(-(2**31), 2**31, (2**20,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    halves = patterns[:1000] & -0x10000 | 0x8000
    bits = torch.cat([EDGES.view(torch.int32), patterns, halves])
    assert torch.equal(join_split(*split(bits.view(torch.float32))).view(torch.int32), bits)


def test_splitting_rounds_to_nearest_and_halves_away_from_zero():
    patterns = torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    master = patterns.view(torch.float32)
    master = master[master.isfinite()]
    high, low = split(master)
    assert high.dtype == torch.bfloat16 and low.dtype == torch.int16
    half = master.view(torch.int32) & 0xFFFF == 0x8000
    assert torch.equal(high[~half], master[~half].to(torch.bfloat16))  # torch rounds halves to even
    halves = (master.view(torch.int32) & -0x10000 | 0x8000).view(torch.float32)
    assert (split(halves)[0].float().abs() > halves.abs()).all()


def test_a_bf16_weight_without_remainder_is_its_own_master():
    weight = torch.randn(1000).to(torch.bfloat16)
    assert torch.equal(join_split(weight, torch.zeros(1000, dtype=torch.int16)), weight.float())
    high, low = split(weight.float())
    assert torch.equal(high, weight) and not low.any()


# AdamW

OPTIONS = dict(lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
SEVERAL = [0, 5, TILE + 9, 0, 1001, 0]


@pytest.mark.parametrize("numels", [[numel] for numel in SIZES] + [SEVERAL], ids=str)
@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_is_torchs_on_what_is_selected(coding, density, numels, chunk):
    generator = torch.Generator().manual_seed(0)
    masks = masks_of(density, numels)
    layout = make_layout(masks, indexed=coding == "indices")
    weights = [torch.randn(numel, generator=generator) for numel in numels]
    original = [weight.clone() for weight in weights]
    theirs = torch.nn.Parameter(torch.cat([weight[mask] for weight, mask in zip(weights, masks)]))
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    state = State.zeros(weights, layout)
    for step in range(1, 6):
        theirs.grad = torch.randn(layout.num_selected, generator=generator)
        state.step(layout, theirs.grad, step=step, **OPTIONS)
        optimizer.step()
    torch.testing.assert_close(state.masters(masks), theirs.detach(), rtol=1e-6, atol=1e-7)
    for weight, before, mask in zip(weights, original, masks):
        assert torch.equal(weight[~mask], before[~mask])


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_scales_the_gradient_in_fp32(coding, grad_dtype, chunk):
    masks = masks_of(0.3, SEVERAL)
    layout = make_layout(masks, indexed=coding == "indices")
    weights = [torch.randn(numel, generator=torch.Generator().manual_seed(0)) for numel in SEVERAL]
    grad = tensors(layout.num_selected)[1].to(grad_dtype)
    scaled, plain = (State.zeros([w.clone() for w in weights], layout) for _ in range(2))
    scaled.step(layout, grad, step=3, grad_scale=0.3, **OPTIONS)
    plain.step(layout, grad.float() * 0.3, step=3, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(scaled.weights, plain.weights))
    assert torch.equal(scaled.exp_avg, plain.exp_avg) and torch.equal(scaled.exp_avg_sq, plain.exp_avg_sq)


@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_with_a_remainder_gives_the_bits_of_fp32(coding, chunk):
    generator = torch.Generator().manual_seed(0)
    masks = masks_of(0.3, SEVERAL)
    layout = make_layout(masks, indexed=coding == "indices")
    weights = [(torch.randn(numel, generator=generator) * 0.02).to(torch.bfloat16) for numel in SEVERAL]
    single = State.zeros([weight.float() for weight in weights], layout)
    double = State.zeros(weights, layout, split=True)
    options = dict(lr=1e-5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    for step in range(1, 11):
        grad = torch.randn(layout.num_selected, generator=generator)
        single.step(layout, grad, step=step, **options)
        double.step(layout, grad, step=step, **options)
    assert torch.equal(double.masters(masks), single.masters(masks))
    assert double.remainder.any()


def test_adamw_without_a_remainder_rounds_to_the_nearest_bf16(chunk):
    masks = [torch.ones(1001, dtype=torch.bool)]
    layout = make_layout(masks)
    weight, grad, _ = tensors(1001, torch.bfloat16)
    single, rounded = State.zeros([weight.float()], layout), State.zeros([weight], layout)
    for state in (single, rounded):
        state.step(layout, grad, step=1, **OPTIONS)
    assert torch.equal(rounded.weights[0], single.weights[0].to(torch.bfloat16))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_with_moments_of_8_bits_is_close_to_fp32_and_the_same_in_any_pieces(coding, split, chunk, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    masks = masks_of(0.3, SEVERAL)
    layout = make_layout(masks, indexed=coding == "indices")
    dtype = torch.bfloat16 if split else torch.float32
    weights = [(torch.randn(numel, generator=generator) * 0.02).to(dtype) for numel in SEVERAL]
    single, small, again = (
        State.zeros([w.clone() for w in weights], layout, state_bits=bits, split=split) for bits in (32, 8, 8)
    )
    options = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    for step in range(1, 11):
        grad = torch.randn(layout.num_selected, generator=generator)
        single.step(layout, grad, step=step, **options)
        small.step(layout, grad, step=step, **options)
        with monkeypatch.context() as patch:
            patch.setattr(compaction, "RUN_TILES", 2)
            again.step(layout, grad, step=step, **options)
    off = (small.masters(masks) - single.masters(masks)).abs() / options["lr"]
    assert off.mean() < 0.1 and off.max() < 3
    assert small.exp_avg.dtype == torch.int8 and small.exp_avg_sq.min() >= 1
    for name in ("exp_avg", "exp_avg_sq", "exp_avg_exponent", "exp_avg_sq_exponent"):
        assert torch.equal(getattr(small, name), getattr(again, name)), name
    assert torch.equal(small.masters(masks), again.masters(masks))


# Inputs


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4), torch.zeros(32)[::2], torch.tensor(1.0)], ids=["2-D", "gaps", "0-D"]
)
@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_tensors_that_are_not_flat_and_contiguous(op, bad):
    with pytest.raises(ValueError, match=f"^{op} takes contiguous one-dimensional tensors, got shape"):
        CALLS[op](bad)


def test_ops_refuse_tensors_on_several_devices():
    with pytest.raises(ValueError, match="accumulate takes tensors on one device, got some on cpu and meta"):
        wagle_kernels.accumulate(torch.zeros(4), torch.zeros(4, device="meta"))


@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_an_unknown_backend(op):
    with pytest.raises(ValueError, match=r"Unknown backend 'cuda'; expected one of reference, triton"):
        CALLS[op](torch.zeros(16), backend="cuda")


@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_kernels_on_the_cpu(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match="backend 'triton' takes tensors on a GPU, got some on 'cpu'; leave `backend`"
    ):
        CALLS[op](torch.zeros(16), backend="triton")


def test_every_op_is_called_here():
    ops = {name for name in wagle_kernels.__all__ if hasattr(wagle_kernels.reference, name)}
    assert set(CALLS) == ops


# Memory

NUMEL = 2**23
MAGNITUDE = ScoreSpec("magnitude")


def large_layout(octet, coding):
    return Layout.of([torch.full((NUMEL // 8,), octet, dtype=torch.uint8)], [NUMEL], indexed=coding == "indices")


def large_step(x, layout, **state):
    weight = x.view(torch.bfloat16)[:NUMEL] if "remainder" in state else x
    wagle_kernels.adamw([weight], layout, x, *state.pop("moments", (x, x)), **state, **STEP)


def large_partition(x, **bracket):
    candidates = Candidates.allocate(**bracket, numel=NUMEL, capacity=100, device=x.device)
    masks = torch.zeros(NUMEL // 8, dtype=torch.uint8), torch.zeros(NUMEL // TILE, dtype=torch.int32)
    wagle_kernels.score_partition(*masks, candidates, x, x, x, SPEC)


def large_ties(x):
    masks = torch.zeros(NUMEL // 8, dtype=torch.uint8), torch.full((NUMEL // TILE,), TILE, dtype=torch.int32)
    wagle_kernels.add_ties(*masks, x, x, x, SPEC, key=0, ties=NUMEL)


def large_moments(x):
    exponents = torch.zeros(NUMEL // 64, dtype=torch.uint8)
    moments = x.view(torch.int8)[:NUMEL], x.view(torch.uint8)[:NUMEL]
    return dict(moments=moments, exp_avg_exponent=exponents, exp_avg_sq_exponent=exponents)


LARGE_CALLS = {
    "score": lambda x, bits: wagle_kernels.score(x, x, x, SPEC),
    "random": lambda x, bits: wagle_kernels.score(x, None, None, ScoreSpec("random")),
    "score_histogram": lambda x, bits: [
        wagle_kernels.score_histogram(torch.zeros(2**16, dtype=torch.int64), x, x, x, SPEC, shift=s) for s in (0, 16)
    ],
    "score_partition, all inside": lambda x, bits: large_partition(x, low=0, high=9),
    "score_partition, all beneath": lambda x, bits: large_partition(x, low=8, high=9),
    "add_ties": lambda x, bits: large_ties(x),
    "pack": lambda x, bits: wagle_kernels.pack(x.view(torch.bool)),
    "unpack": lambda x, bits: wagle_kernels.unpack(bits, NUMEL),
    "popcount": lambda x, bits: wagle_kernels.popcount(x.view(torch.uint8)),
    "accumulate": lambda x, bits: [wagle_kernels.accumulate(x, x, squared=squared) for squared in (False, True)],
    "accumulate of bf16": lambda x, bits: wagle_kernels.accumulate(x, x.view(torch.bfloat16)[:NUMEL]),
}
RESULT_BYTES = {"score": 4 * NUMEL, "random": 4 * NUMEL, "pack": NUMEL // 2, "unpack": NUMEL}
LARGE_LAYOUT_CALLS = {
    "compress": lambda x, layout: wagle_kernels.compress(x, layout, 0, x, squares=torch.zeros(NUMEL // TILE)),
    "compress, adding": lambda x, layout: wagle_kernels.compress(x, layout, 0, x, accumulate=True),
    "scatter": lambda x, layout: wagle_kernels.scatter(x.clone(), layout, 0, x[: layout.num_selected]),
    "adamw": lambda x, layout: large_step(x, layout),
    "adamw of bf16": lambda x, layout: large_step(x, layout, remainder=x.view(torch.int16)[:NUMEL]),
    "adamw of 8 bits": lambda x, layout: large_step(x, layout, **large_moments(x)),
}


@pytest.mark.parametrize("op", LARGE_CALLS)
def test_no_temporary_exceeds_a_few_megabytes(op, allocations):
    x, bits = torch.zeros(NUMEL), torch.full((NUMEL // 8,), 0xFF, dtype=torch.uint8)
    with allocations:
        LARGE_CALLS[op](x, bits)
    if op in RESULT_BYTES:
        allocations.sizes.remove(RESULT_BYTES[op])
    assert max(allocations.sizes, default=0) <= 4 * 2**20
    assert allocations.sizes or op == "accumulate", "nothing was recorded"


@pytest.mark.parametrize("octet", [0xFF, 0x10, 0], ids=["all", "some", "none"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("op", LARGE_LAYOUT_CALLS)
def test_no_temporary_of_a_layout_exceeds_a_few_megabytes(op, coding, octet, allocations):
    x, layout = torch.zeros(NUMEL), large_layout(octet, coding)
    with allocations:
        LARGE_LAYOUT_CALLS[op](x, layout)
    if op == "scatter":
        allocations.sizes.remove(x.nbytes)
    assert max(allocations.sizes) <= 4 * 2**20


@pytest.mark.parametrize("coding", CODINGS)
def test_making_a_layout_takes_little_more_than_the_layout(coding, allocations):
    with allocations:
        layout = large_layout(0xFF, coding)
    held = layout.bits if coding == "bits" else layout.indices
    allocations.sizes.remove(held.nbytes)
    assert max(allocations.sizes) <= 4 * 2**20
