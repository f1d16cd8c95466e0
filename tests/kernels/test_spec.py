"""What both backends agree on: formulas, candidates, and the split of an fp32 master."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wagle_kernels
from wagle_kernels import NON_FINITE_KEY, Candidates, ScoreSpec, join_split, split

from .helpers import tensors


def test_an_unknown_formula_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown formula 'hessian'; expected one of wagle, gradient, .*, ratio"):
        wagle_kernels.score(*tensors(4), ScoreSpec("hessian"))


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
