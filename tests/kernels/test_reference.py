"""The specification of every op, against numpy, plain torch, or another way to compute the same."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wagle_kernels
from wagle_kernels import CHUNK, FORMULAS, ScoreSpec, join_split, split
from wagle_kernels.reference import chunking

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 7, 8, 9, 1001]


@pytest.fixture(params=[64, CHUNK], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    """`chunks` with its own size, and with one that every input above 64 elements crosses."""
    monkeypatch.setattr(chunking.chunks, "__defaults__", (request.param,))
    return request.param


def tensors(numel, dtype=torch.float32, seed=0):
    """theta, forget and retain statistic."""
    generator = torch.Generator().manual_seed(seed)
    theta, forget, retain = (torch.randn(numel, generator=generator) for _ in range(3))
    return (theta * 0.02).to(dtype), forget * 1e-3, retain * 1e-3


def random_bits(numel, density=0.3, seed=0):
    return torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < density


# Scores


def murmur(h):
    h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
    h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
    return h ^ h >> 16


def hash_of(seed, index):
    """The hash in plain Python integers."""
    return (murmur(index % 2**32 ^ murmur(index // 2**32 ^ murmur(seed))) >> 8) / 2**24


INDEPENDENT = {
    "wagle": lambda t, f, r, c, seed: np.abs((t - r / c) * f),
    "gradient": lambda t, f, r, c, seed: np.abs(f),
    "snip": lambda t, f, r, c, seed: np.abs(t) * np.abs(f),
    "product": lambda t, f, r, c, seed: np.abs(f) * np.abs(r),
    "magnitude": lambda t, f, r, c, seed: np.abs(t),
    "ratio": lambda t, f, r, c, seed: np.abs(f) / (np.abs(r) + c),
    "random": lambda t, f, r, c, seed: np.array([hash_of(seed, i) for i in range(5, 5 + len(t))], dtype=np.float32),
}


def test_every_formula_has_an_independent_expression_here():
    assert set(INDEPENDENT) == set(FORMULAS)


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_scores_follow_their_formula(formula, dtype, numel, chunk):
    theta, forget, retain = tensors(numel, dtype)
    scores = wagle_kernels.score(theta, forget, retain, ScoreSpec(formula, scale=0.05, seed=9), offset=5)
    expected = INDEPENDENT[formula](
        theta.float().numpy(), forget.numpy(), retain.numpy(), np.float32(0.05), seed=9
    ).astype(np.float32)
    assert scores.dtype == torch.float32 and scores.shape == (numel,)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("numel", [CHUNK - 1, CHUNK + 3])
def test_scores_do_not_notice_the_default_chunk(numel):
    theta, forget, retain = tensors(numel)
    scores = wagle_kernels.score(theta, forget, retain, ScoreSpec("wagle", scale=0.05))
    torch.testing.assert_close(scores, ((theta - retain / 0.05) * forget).abs(), rtol=1e-6, atol=0)


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


@pytest.mark.parametrize("ties", [0, 1, 3, 100])
def test_thresholds_take_all_above_the_key_and_the_first_ties_at_it(ties, chunk):
    values = torch.tensor([1.0, 2.0, 3.0]).repeat(70)
    key = int(torch.tensor(2.0).view(torch.int32))
    packed, used = wagle_kernels.score_threshold(values, None, None, ScoreSpec("magnitude"), key=key, ties=ties)
    bits = np.unpackbits(packed.numpy(), bitorder="little")[: len(values)]
    assert used == min(ties, 70)
    assert bits.nonzero()[0].tolist() == sorted([*range(2, 210, 3), *range(1, 210, 3)[:ties]])


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


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compress_gathers_in_rising_order(dtype, density, numel, chunk):
    dense, bits = tensors(numel, dtype)[0], random_bits(numel, density)
    packed = wagle_kernels.pack(bits)
    out = torch.full((int(bits.sum()),), 3.0)
    assert wagle_kernels.compress(dense, packed, out) is out
    assert torch.equal(out, dense[bits].float())
    wagle_kernels.compress(dense, packed, out, accumulate=True)
    assert torch.equal(out, 2 * dense[bits].float())


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scatter_undoes_compress_and_keeps_every_other_bit(dtype, density, numel, chunk):
    integer = torch.int16 if dtype == torch.bfloat16 else torch.int32
    info = torch.iinfo(integer)
    patterns = torch.randint(info.min, info.max, (numel,), generator=torch.Generator().manual_seed(1)).to(integer)
    dense, bits = patterns.clone().view(dtype), random_bits(numel, density)  # any bits: NaN, inf, subnormals
    packed = wagle_kernels.pack(bits)
    compact = wagle_kernels.compress(dense, packed, torch.empty(int(bits.sum()), dtype=dtype))
    wagle_kernels.scatter(dense, packed, compact)
    assert torch.equal(dense.view(integer), patterns)
    wagle_kernels.scatter(dense, packed, torch.ones_like(compact))
    assert torch.equal(dense.view(integer)[~bits], patterns[~bits])
    assert (dense[bits] == 1).all()


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


@pytest.mark.parametrize("numel", SIZES)
def test_adamw_is_torchs(numel, chunk):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(numel, generator=generator)
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    exp_avg, exp_avg_sq = torch.zeros(numel), torch.zeros(numel)
    options = dict(lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
    for step in range(1, 6):
        theirs.grad = torch.randn(numel, generator=generator)
        wagle_kernels.adamw(weight, None, theirs.grad, exp_avg, exp_avg_sq, step=step, **options)
        optimizer.step()
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-6, atol=1e-8)


def test_adamw_with_a_remainder_gives_the_bits_of_fp32():
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(999, generator=generator) * 0.02).to(torch.bfloat16)
    master, remainder = weight.float(), torch.zeros(999, dtype=torch.int16)
    moments = [torch.zeros(999) for _ in range(4)]
    options = dict(lr=1e-5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    for step in range(1, 11):
        grad = torch.randn(999, generator=generator)
        wagle_kernels.adamw(master, None, grad, *moments[:2], step=step, **options)
        wagle_kernels.adamw(weight, remainder, grad, *moments[2:], step=step, **options)
    assert torch.equal(join_split(weight, remainder), master)


# Inputs

PACKED = torch.zeros(2, dtype=torch.uint8)
SPEC = ScoreSpec("wagle", scale=0.05)
STEP = dict(step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
CALLS = {
    "score": lambda x, **kw: wagle_kernels.score(x, x, x, SPEC, **kw),
    "score_histogram": lambda x, **kw: wagle_kernels.score_histogram(torch.zeros(256), x, x, x, SPEC, shift=0, **kw),
    "score_threshold": lambda x, **kw: wagle_kernels.score_threshold(x, x, x, SPEC, key=1, ties=0, **kw),
    "pack": lambda x, **kw: wagle_kernels.pack(x, **kw),
    "unpack": lambda x, **kw: wagle_kernels.unpack(x, 16, **kw),
    "popcount": lambda x, **kw: wagle_kernels.popcount(x, **kw),
    "compress": lambda x, **kw: wagle_kernels.compress(x, PACKED, torch.zeros(0), **kw),
    "scatter": lambda x, **kw: wagle_kernels.scatter(x, PACKED, compact=torch.zeros(0), **kw),
    "accumulate": lambda x, **kw: wagle_kernels.accumulate(torch.zeros(16), grad=x, **kw),
    "adamw": lambda x, **kw: wagle_kernels.adamw(x, None, x, x, x, **STEP, **kw),
}


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4), torch.zeros(32)[::2], torch.tensor(1.0)], ids=["2-D", "gaps", "0-D"]
)
@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_tensors_that_are_not_flat_and_contiguous(op, bad):
    with pytest.raises(ValueError, match=f"^{op} takes contiguous one-dimensional tensors, got shape"):
        CALLS[op](bad)


@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_an_unknown_backend(op):
    with pytest.raises(ValueError, match=r"Unknown backend 'cuda'; expected one of reference"):
        CALLS[op](torch.zeros(16), backend="cuda")


# Memory


NUMEL = 2**23
LARGE_CALLS = {
    "score": lambda x, bits: wagle_kernels.score(x, x, x, SPEC),
    "random": lambda x, bits: wagle_kernels.score(x, None, None, ScoreSpec("random")),
    "score_histogram": lambda x, bits: [
        wagle_kernels.score_histogram(torch.zeros(2**16, dtype=torch.int64), x, x, x, SPEC, shift=s) for s in (0, 16)
    ],
    "score_threshold": lambda x, bits: wagle_kernels.score_threshold(x, x, x, SPEC, key=0, ties=NUMEL),
    "pack": lambda x, bits: wagle_kernels.pack(x.view(torch.bool)),
    "unpack": lambda x, bits: wagle_kernels.unpack(bits, NUMEL),
    "popcount": lambda x, bits: wagle_kernels.popcount(x.view(torch.uint8)),
    "compress": lambda x, bits: wagle_kernels.compress(x, bits, x),
    "scatter": lambda x, bits: wagle_kernels.scatter(x, bits, x),
    "accumulate": lambda x, bits: [wagle_kernels.accumulate(x, x, squared=squared) for squared in (False, True)],
    "adamw": lambda x, bits: wagle_kernels.adamw(x, None, x, x, x, **STEP),
    "adamw of bf16": lambda x, bits: wagle_kernels.adamw(
        x.view(torch.bfloat16)[:NUMEL], x.view(torch.int16)[:NUMEL], x, x, x, **STEP
    ),
    "accumulate of bf16": lambda x, bits: wagle_kernels.accumulate(x, x.view(torch.bfloat16)[:NUMEL]),
}
RESULT_BYTES = {"score": 4 * NUMEL, "random": 4 * NUMEL, "pack": NUMEL // 2, "unpack": NUMEL}


@pytest.mark.parametrize("op", LARGE_CALLS)
def test_no_temporary_exceeds_a_few_megabytes(op, allocations):
    x, bits = torch.zeros(NUMEL), torch.full((NUMEL // 8,), 0xFF, dtype=torch.uint8)
    with allocations:
        LARGE_CALLS[op](x, bits)
    if op in RESULT_BYTES:
        allocations.sizes.remove(RESULT_BYTES[op])
    assert max(allocations.sizes, default=0) <= 4 * 2**20
    assert allocations.sizes or op == "accumulate", "nothing was recorded"
