"""The selection against a stable argsort of all scores, which it never makes itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_kernels import ScoreSpec
from wagle_kernels.reference import chunking
from wagle_trl.selection import Scored, find_threshold, select

# Few distinct values, so that most scores are tied: zeros, subnormals, neighbours, the largest finite
TIED = [0.0, 1e-45, 3e-45, 1e-40, 1.1754944e-38, 1.0, 1.0000001, 2.0, 3e38, 3.4028235e38]


def scored_by(*values, formula="gradient", **spec):
    """Parameters whose scores are `values`."""
    statistics = {f"layers.{i}.weight": torch.as_tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    parameters = {name: torch.ones_like(value) for name, value in statistics.items()}
    return Scored(parameters, ScoreSpec(formula, **spec), statistics, statistics)


def by_argsort(scored, k):
    """The first k of a stable descending sort, earlier parameters and lower indices first."""
    scores = np.concatenate([v.abs().numpy().reshape(-1) for v in scored.forget.values()])
    bits = np.zeros(len(scores), dtype=bool)
    bits[np.argsort(-scores.astype(np.float64), kind="stable")[:k]] = True
    return bits


def bits_of(mask):
    return np.concatenate([mask.dense(name).numpy().reshape(-1) for name in mask.bits])


def check(scored, density, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking.chunks, "__defaults__", (chunk,))
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


def test_the_threshold_is_the_kth_largest_score():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(3).round()
    ordered = values.abs().sort(descending=True).values
    for k in (1, 10, 500, 1000):
        threshold = find_threshold(scored_by(values), k)
        assert threshold.value == ordered[k - 1]
        assert threshold.ties == k - int((ordered > ordered[k - 1]).sum())


def test_the_mask_carries_its_threshold_and_info():
    mask = select(scored_by([1.0, 2.0, 3.0, 4.0]), 0.5, {"score": "gradient"})
    assert mask.info == {"score": "gradient", "threshold": "3.0"}


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
