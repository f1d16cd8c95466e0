"""State of selected weights, whatever the rule that updates them."""

import pytest
import torch
from torch import nn

from wagle_kernels import DENSE_GROUP, TILE
from wagle_trl.masks.mask import WeightMask
from wagle_trl.optim.compact_state import allocate_arenas, state_bytes

NUMEL = 2 * TILE
MASK = torch.arange(NUMEL) % 2 == 0


def group(parameter, state_bits):
    return {
        "params": [parameter],
        "param_names": ["w"],
        "state_bits": state_bits,
        "master": "split",
        "accumulator_dtype": "float32",
    }


def test_another_rule_keeps_moments_of_its_own_in_the_same_arenas():
    parameter = nn.Parameter(torch.ones(2, TILE))
    mask = WeightMask.from_dense({"w": MASK.view(2, TILE)})
    [arena] = allocate_arenas(group(parameter, 32), mask, {"momentum": torch.int8})
    item, gradient = arena.slices[0], torch.arange(NUMEL, dtype=torch.float32).view(2, TILE)
    for _ in range(2):  # SGD with momentum
        arena.collect(item, gradient)
        arena.begin_step()
        momentum = arena.states["momentum"].mul_(0.5).add_(arena.grad)
        arena.weights[0][MASK] -= 0.125 * momentum
        arena.clear()
    assert arena.state_of(item).keys() == {"step", "momentum"} and arena.step == 2
    expected = torch.where(MASK, 1 - 0.125 * 2.5 * gradient.view(-1), 1)
    assert torch.equal(parameter.detach().view(-1), expected)


def test_a_gradient_that_did_not_come_is_zero_in_a_step():
    parameter = nn.Parameter(torch.ones(2, TILE))
    [arena] = allocate_arenas(group(parameter, 32), WeightMask.from_dense({"w": MASK.view(2, TILE)}), {})
    arena.collect(arena.slices[0], torch.ones(2, TILE))
    arena.clear()
    arena.begin_step()
    assert not arena.grad.any()


@pytest.mark.parametrize("state_bits", [8, 32])
@pytest.mark.parametrize("moments", [{}, {"momentum": torch.int8}, {"exp_avg": torch.int8, "hessian": torch.uint8}])
def test_predicted_bytes_of_moments_are_those_allocated(state_bits, moments):
    parameter = nn.Parameter(torch.ones(2, TILE))
    mask = WeightMask.from_dense({"w": MASK.view(2, TILE)})
    [arena] = allocate_arenas(group(parameter, state_bits), mask, moments)
    assert {kind: arena.states[kind].dtype for kind in moments} == (
        moments if state_bits == 8 else dict.fromkeys(moments, torch.float32)
    )
    allocated = sum(values.nbytes for values in arena.states.values())
    assert allocated == state_bytes(parameter, NUMEL // 2, state_bits, False, len(moments))["moments"]
    if state_bits == 8:
        assert all(arena.states[f"{kind}_exponent"].shape == (NUMEL // DENSE_GROUP,) for kind in moments)
