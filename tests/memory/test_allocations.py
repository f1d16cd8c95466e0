"""What `Allocations` counts, by hand, and on fake tensors what it counts on real ones."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from wagle_trl.memory.allocations import Allocations

KB = 256  # elements of fp32


def test_held_tensors_count_from_the_start():
    held = [torch.empty(KB), torch.empty(3, KB, dtype=torch.bfloat16)]
    memory = Allocations(held)
    assert memory.current == memory.peak == 1024 + 1536
    assert memory.sizes == []  # not created here


def test_a_held_storage_counts_once_however_many_tensors_show_it():
    weight = nn.Parameter(torch.empty(4, KB))
    tied = nn.Linear(KB, 4, bias=False)
    tied.weight = weight
    held = [weight, weight, tied.weight, weight[1:], weight.t(), weight.detach(), weight.data]
    assert Allocations(held).current == 4096


def test_a_held_view_counts_the_storage_it_keeps_alive():
    view = torch.empty(4, KB)[0]
    assert Allocations([view]).current == 4096


def test_held_tensors_may_come_from_a_generator():
    model = nn.Linear(KB, 2)
    assert Allocations(model.parameters()).current == 2 * 1024 + 8


def test_held_tensors_that_die_are_no_longer_counted():
    held = [torch.empty(KB), torch.empty(2 * KB)]
    with Allocations(held) as memory:
        held.pop()
        assert (memory.current, memory.peak) == (1024, 3072)


def test_new_storages_count_until_they_die():
    with Allocations() as memory:
        first = torch.zeros(KB)
        second = first + 1
        assert memory.current == 2048
        del first
        assert memory.current == 1024
        third = second.double()
        assert memory.current == memory.peak == 3072
        del second, third
    assert (memory.current, memory.peak) == (0, 3072)
    assert memory.sizes == [1024, 1024, 2048]


def test_what_dies_after_the_context_is_given_back():
    with Allocations() as memory:
        kept = torch.zeros(KB)
    assert memory.current == 1024
    del kept
    assert memory.current == 0


def test_what_is_created_outside_the_context_does_not_count():
    memory = Allocations()
    before = torch.zeros(KB)
    with memory:
        inside = torch.zeros(KB)
    after = inside + before
    assert (memory.current, memory.peak) == (1024, 1024)
    assert len(after) == KB


def test_a_storage_lives_as_long_as_a_view_of_it():
    with Allocations() as memory:
        whole = torch.zeros(4, KB)
        part = whole[0]
        del whole
        assert memory.current == 4096
        del part
        assert memory.current == 0


IN_PLACE_OR_VIEW = {
    "add_": lambda t: t.add_(1),
    "copy_": lambda t: t[0].copy_(t[1]),
    "setitem": lambda t: t.__setitem__(0, 1.0),
    "out": lambda t: torch.mul(t, 2, out=t),
    "slice": lambda t: t[1:],
    "transpose": lambda t: t.t(),
    "view": lambda t: t.view(-1),
    "detach": lambda t: t.detach(),
    "split": lambda t: t.split(1),
    "no copy": lambda t: t.float().contiguous().cpu().reshape(-1),
}


@pytest.mark.parametrize("op", IN_PLACE_OR_VIEW)
@pytest.mark.parametrize("is_own", [False, True], ids=["created before", "created inside"])
def test_in_place_ops_and_views_count_nothing(op, is_own):
    before = torch.ones(4, KB)
    with Allocations() as memory:
        tensor = torch.ones(4, KB) if is_own else before
        memory.sizes.clear()
        memory.reset_peak()
        result = IN_PLACE_OR_VIEW[op](tensor)
        assert memory.sizes == []
        assert memory.current == memory.peak == (4096 if is_own else 0)
    del result


def test_arguments_that_are_met_first_are_not_counted():
    argument, listed, out = torch.ones(4, KB), torch.ones(4, KB), torch.empty(8, KB)
    with Allocations() as memory:
        result = torch.cat([argument, listed])
        torch.add(result, 1, out=out)
        assert memory.current == memory.peak == 8192
    assert memory.sizes == [8192]


def test_what_an_argument_holds_is_not_freed_with_it():
    argument = torch.ones(KB)
    with Allocations() as memory:
        result = argument * 2
        del argument
        assert memory.current == 1024
        del result
        assert memory.current == 0


def test_a_large_temporary_inside_an_expression_shows_in_the_peak():
    row = torch.ones(KB)
    with Allocations([row]) as memory:
        total = (row[:, None] * row).sum(0)
        total = total + 1  # much smaller: the peak stays
    assert memory.peak == 1024 + 1024 * KB + 1024
    assert memory.current == 2048
    assert len(total) == KB


def test_the_peak_starts_over_from_what_is_alive():
    with Allocations() as memory:
        kept = torch.zeros(KB)
        torch.zeros(8, KB)
        assert memory.peak == 9 * 1024
        memory.reset_peak()
        assert memory.peak == memory.current == 1024
        torch.zeros(KB)
        assert memory.peak == 2048
    del kept


def test_several_results_of_an_op_each_count():
    with Allocations() as memory:
        values, indices = torch.zeros(KB).sort()
        assert memory.current == 1024 + 2048  # fp32 and int64; the argument is gone
        del values
        assert memory.current == 2048
    assert memory.peak == 1024 + 1024 + 2048
    assert len(indices) == KB


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_a_backward_pass_count_until_they_are_freed(frozen):
    model = nn.Sequential(nn.Linear(KB, KB, bias=False), nn.Linear(KB, 1, bias=False))
    model[0].weight.requires_grad_(not frozen)
    with Allocations(model.parameters()) as memory:
        weights = memory.current
        model(torch.ones(1, KB)).sum().backward()
        gradients = memory.current - weights
        assert gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)
        model.zero_grad(set_to_none=True)
        assert memory.current == weights
        assert memory.peak >= weights + gradients


def step(model, memory, batch):
    """Bytes after each stage of two training steps."""
    seen = []
    for _ in range(2):
        loss = (model(batch) ** 2).mean()
        seen.append(memory.current)
        loss.backward()
        seen.append(memory.current)
    del loss
    return [*seen, memory.current, memory.peak, *memory.sizes]


def build():
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 64), nn.Dropout(0.1))


def test_fake_tensors_are_counted_as_real_ones():
    model = build()
    with Allocations(model.parameters()) as memory:
        real = step(model, memory, torch.ones(5, 64))
    with FakeTensorMode():
        model = build()
        with Allocations(model.parameters()) as memory:
            fake = step(model, memory, torch.ones(5, 64))
    assert fake == real
    assert max(real) > 2 * sum(p.numel() * 4 for p in model.parameters())  # weights and gradients
