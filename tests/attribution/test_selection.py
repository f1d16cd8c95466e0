"""The selection against a stable argsort of all scores, which it never makes itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wagle_kernels
from wagle_kernels import ScoreSpec, backends, triton_ops
from wagle_kernels.reference import chunking
from wagle_trl.attribution import selection
from wagle_trl.attribution.lazy_scores import LazyScores
from wagle_trl.attribution.selection import find_threshold, select
from wagle_trl.masks.info import MaskInfo

from ..kernels.helpers import walk_tiles_in_two_steps

# Few distinct values, so that most scores are tied: zeros, subnormals, neighbours, the largest finite
TIED = [0.0, 1e-45, 3e-45, 1e-40, 1.1754944e-38, 1.0, 1.0000001, 2.0, 3e38, 3.4028235e38]


def scored_by(*values, formula="gradient", **spec):
    """Parameters whose scores are `values`."""
    statistics = {f"layers.{i}.weight": torch.as_tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    parameters = {name: torch.ones_like(value) for name, value in statistics.items()}
    return LazyScores(parameters, ScoreSpec(formula, **spec), statistics, statistics)


def by_argsort(scored, k):
    """The first k of a stable descending sort, earlier parameters and lower indices first."""
    scores = np.concatenate([v.abs().numpy().reshape(-1) for v in scored.forget.values()])
    bits = np.zeros(len(scores), dtype=bool)
    bits[np.argsort(-scores.astype(np.float64), kind="stable")[:k]] = True
    return bits


def bits_of(mask):
    return np.concatenate([mask.dense(name).numpy().reshape(-1) for name in mask.bits])


def check(scored, density, chunk, bracket=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking.chunks, "__defaults__", (chunk,))
        if bracket is not None:
            patch.setattr(selection, "bracket", lambda scored, k: bracket)
        mask = select(scored, density)
    k = round(density * scored.numel)
    assert mask.num_selected == k
    assert np.array_equal(bits_of(mask), by_argsort(scored, k))


def tensors_of(element):
    return st.lists(st.lists(element, max_size=40), min_size=1, max_size=5)


@settings(max_examples=150)
@given(tensors_of(st.sampled_from(TIED)), st.floats(0.001, 1), st.sampled_from([8, 16, 2**18]))
def test_the_mask_is_a_stable_descending_argsort_of_tied_scores(values, density, chunk):
    scored = scored_by(*values)
    if round(density * scored.numel):
        check(scored, density, chunk)


def key_of(value):
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


@settings(max_examples=150)
@given(
    tensors_of(st.sampled_from(TIED)),
    st.floats(0.001, 1),
    st.tuples(st.sampled_from(TIED), st.sampled_from(TIED)).map(sorted),
    st.sampled_from([0, 1, 5, 300]),
)
def test_the_mask_is_the_same_however_the_bracket_falls(values, density, bracket, capacity):
    """Brackets that miss, hold more than there is room for, or one key alone: the exact key is found another way."""
    scored = scored_by(*values)
    if round(density * scored.numel):
        check(scored, density, 2**18, (*map(key_of, bracket), capacity))


@settings(max_examples=30)
@given(st.floats(0.001, 1), st.integers(0, 10**6), st.sampled_from([16, 300]))
def test_the_sampled_bracket_gives_the_exact_mask(density, seed, always_ranked):
    generator = torch.Generator().manual_seed(seed)
    scored = scored_by(torch.randn(1500, generator=generator), torch.randn(40, 20, generator=generator).mul(3).round())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_ALWAYS_RANKED", always_ranked)
        check(scored, density, 2**18)


@settings(max_examples=100)
@given(
    tensors_of(st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.floats(0.001, 1),
    st.sampled_from([8, 16, 2**18]),
)
def test_the_mask_is_a_stable_descending_argsort_of_any_scores(values, density, chunk):
    scored = scored_by(*values)
    if round(density * scored.numel):
        check(scored, density, chunk)


@pytest.mark.parametrize("value", TIED)
@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_equal_scores_are_taken_in_model_order(value, density):
    scored = scored_by(np.full((7, 9), value), np.full(40, value))
    mask = select(scored, density)
    k = round(density * 103)
    assert bits_of(mask).tolist() == [True] * k + [False] * (103 - k)


def test_density_one_takes_everything():
    assert select(scored_by([0.0, 1.0, 0.0], [[2.0, 0.0]]), 1.0).density == 1.0


def test_large_parameters_cross_the_default_chunk_alike():
    values = torch.randint(0, 50, (2**18 + 80,), generator=torch.Generator().manual_seed(0))
    scored = scored_by(values[:100], values[100:].view(4, -1))
    for density in (0.001, 0.05, 0.7):
        check(scored, density, 2**18)
        check(scored, density, 4096)


def test_the_data_are_read_about_once(monkeypatch):
    read = []

    def counted(op):
        def call(*args, **kwargs):
            read.append(max(t.numel() for t in args if isinstance(t, torch.Tensor) and t.dtype == torch.float32))
            return op(*args, **kwargs)

        return call

    for name in ("score", "score_histogram", "score_partition", "add_ties"):
        monkeypatch.setattr(wagle_kernels, name, counted(getattr(wagle_kernels, name)))
    generator = torch.Generator().manual_seed(0)
    scored = scored_by(*(torch.randn(n, generator=generator) * n for n in (300_000, 1_000, 700_000)))
    for density in (0.001, 0.05, 0.5, 0.95):
        read.clear()
        select(scored, density)
        assert scored.numel < sum(read) < 1.03 * scored.numel


def test_many_equal_scores_are_read_twice_and_need_little_memory(allocations):
    values = torch.cat([torch.zeros(2**22), torch.rand(2**20, generator=torch.Generator().manual_seed(0))])
    scored = scored_by(values)
    with allocations:
        mask = select(scored, 0.5)
    assert np.array_equal(bits_of(mask), by_argsort(scored, mask.num_selected))
    assert max(allocations.sizes) <= 4 * 2**20


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("bracket", [None, (key_of(1e30), key_of(1e31), 10), (key_of(1.0), key_of(1.0), 3)])
def test_parameters_on_several_devices_give_the_mask_of_one(density, bracket, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scored = scored_by(*(torch.randn(n, generator=generator).mul(2).round() for n in (50, 0, 700, 3, 300)))
    expected = select(scored, density)
    pieces = scored.pieces
    monkeypatch.setattr(LazyScores, "by_device", lambda self: [pieces[::2], pieces[1::2]])  # as if on two
    if bracket is not None:
        monkeypatch.setattr(selection, "bracket", lambda scored, k: bracket)
    assert select(scored, density) == expected


SCORES = [("ratio", 0.05), ("ratio", 0.7), ("wagle", 0.2), ("product", 0.95), ("random", 0.1), ("magnitude", 0.3)]


@pytest.mark.parametrize(("formula", "density"), SCORES)
@pytest.mark.parametrize("tied", [False, True])
def test_masks_are_bit_identical_between_the_backends(formula, density, tied, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.randn(shape, generator=generator)
        return values.round() if tied else values

    parameters = {"a": draw(5), "b": draw(40, 51).to(torch.bfloat16)}
    statistics = ({name: draw(*p.shape) for name, p in parameters.items()} for _ in range(2))
    scored = LazyScores(parameters, ScoreSpec(formula, 0.5), *statistics)
    monkeypatch.setattr(selection, "_ALWAYS_RANKED", 20)
    expected = select(scored, density)
    walk_tiles_in_two_steps(monkeypatch)
    monkeypatch.setattr(backends, "_implementation", lambda name, device: triton_ops)
    monkeypatch.setattr(wagle_kernels, "digit_bits", lambda device: 8)
    assert select(scored, density) == expected
    monkeypatch.setattr(selection, "bracket", lambda scored, k: (key_of(1e30), key_of(1e31), 10))  # it misses
    assert select(scored, density) == expected


def test_the_threshold_is_the_kth_largest_score():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(3).round()
    ordered = values.abs().sort(descending=True).values
    for k in (1, 10, 500, 1000):
        key, ties = find_threshold(scored_by(values), k)
        assert key == int(ordered[k - 1].view(torch.int32))
        assert ties == k - int((ordered > ordered[k - 1]).sum())


def test_the_mask_carries_its_threshold_and_info():
    mask = select(scored_by([1.0, 2.0, 3.0, 4.0]), 0.5, MaskInfo(score="gradient"))
    assert mask.info == MaskInfo(score="gradient", threshold=3.0)


def test_random_masks_do_not_depend_on_how_weights_are_cut_into_parameters():
    def random_bits(*cuts, seed=5):
        return bits_of(select(scored_by(*torch.zeros(900).tensor_split(cuts), formula="random", seed=seed), 0.1))

    whole = random_bits()
    assert np.array_equal(whole, random_bits(1, 8, 300, 301))
    assert np.array_equal(whole, random_bits(450))
    assert whole.sum() == 90
    assert (whole & random_bits(seed=6)).sum() < 30  # 9 expected


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_density_outside_0_to_1_is_refused(density):
    with pytest.raises(ValueError, match=rf"mask_density must be in \(0, 1\], got {density}"):
        select(scored_by([1.0, 2.0]), density)


def test_a_density_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask_density 0\.01 of 10 weights selects none; raise it"):
        select(scored_by(torch.ones(10)), 0.01)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 70])
def test_a_score_that_is_not_finite_names_its_parameter(bad, position):
    values = torch.zeros(100)
    values[position] = bad
    with pytest.raises(ValueError, match=r"The score of 'layers\.1\.weight' is NaN or infinite"):
        select(scored_by(torch.ones(50), values, torch.ones(50)), 0.1)


def test_a_score_that_overflows_names_its_parameter():
    with pytest.raises(ValueError, match=r"The score of 'layers\.1\.weight' is NaN or infinite"):
        select(scored_by([1.0, 1.0], [1e30, 1.0], formula="product"), 0.5)
