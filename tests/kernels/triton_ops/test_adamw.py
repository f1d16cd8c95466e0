"""AdamW of the kernels, against fp64 and the specification."""

import pytest
import torch

import wagle_kernels
from wagle_kernels import TILE, Layout

from ..helpers import (
    CODINGS,
    DEVICE,
    TILED_SIZES,
    State,
    assert_not_worse,
    bits_of,
    exact_adamw,
    make_layout,
    masks_of,
    random_bits,
    random_patterns,
    tensors,
)
from .addresses import FAR, LONG, aligned, far, far_copy, far_layout, misaligned
from .marks import interpreter_only, masked_lanes, needs_48_gb

pytestmark = masked_lanes

SEVERAL = [5, 0, TILE + 808]  # sizes of the tensors of one layout: parts of a tile, none, a whole one and a part
OPTIONS = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, grad_scale=0.7)
WEIGHTS = {
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "bf16 with remainder": (torch.bfloat16, True),
}


def groups_of_each(layout, masks):
    """Group of every compact element."""
    blocks = wagle_kernels.reference.compaction.blocks(layout, slice(0, layout.tiles[-1]))
    return torch.cat([block.group_of_each(block.positions()) for block in blocks])


def assert_few_differ(ours, theirs):
    """Codes are a level apart at most, and that rarely."""
    levels = (ours.cpu().int() - theirs.int()).abs()
    assert levels.max() <= 1 and (levels > 0).sum() <= max(1e-3 * levels.numel(), 1)


def assert_steps_like_the_specification(
    masks, coding, dtype, split, state_bits, *, steps=2, grad_dtype=torch.float32, place=aligned
):
    layout = make_layout(masks, indexed=coding == "indices")
    device_layout = make_layout(masks, indexed=coding == "indices", device=DEVICE)
    weights = []
    for i, mask in enumerate(masks):  # any bits where nothing is selected
        weight = random_patterns(mask.numel(), dtype, seed=i)
        weight[mask] = tensors(int(mask.sum()), dtype, seed=i)[0]
        weights.append(weight)
    original = [weight.clone() for weight in weights]
    theirs = State.zeros(weights, layout, state_bits=state_bits, split=split)
    groups = groups_of_each(layout, masks)
    for step in range(1, steps + 1):
        _, grad, spread = tensors(layout.num_selected, seed=step)
        grad = (grad * torch.exp(2e3 * spread)).to(grad_dtype)
        m, v = theirs.moments(groups)
        exact = exact_adamw(theirs.masters(masks), grad, m, v, step=step, **OPTIONS)
        ours = theirs.map(place)  # both step from the same state, so that differences do not pile up
        ours.step(device_layout, grad.to(DEVICE), step=step, **OPTIONS, backend="triton")
        theirs.step(layout, grad, step=step, **OPTIONS)
        ours = ours.map(lambda x: x.cpu().clone())
        for weight, before, mask in zip(ours.weights, original, masks):
            assert torch.equal(bits_of(weight)[~mask], bits_of(before)[~mask])
        master, m_exact, v_exact = exact
        rounding = 1e-4 * OPTIONS["lr"] + 2.0**-23 * master.abs()
        assert_not_worse(ours.masters(masks), theirs.masters(masks), master, rounding)
        if state_bits == 32:
            assert_not_worse(ours.exp_avg, theirs.exp_avg, m_exact, 2.0**-22 * (m.abs() + grad.float().abs()))
            assert_not_worse(ours.exp_avg_sq, theirs.exp_avg_sq, v_exact, 2.0**-21 * v_exact)
        else:
            assert_few_differ(ours.exp_avg, theirs.exp_avg)
            assert_few_differ(ours.exp_avg_sq, theirs.exp_avg_sq)
            assert torch.equal(ours.exp_avg_exponent, theirs.exp_avg_exponent)
            assert torch.equal(ours.exp_avg_sq_exponent, theirs.exp_avg_sq_exponent)
    return theirs


@pytest.mark.parametrize("density", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_is_not_worse_than_the_specification(coding, state_bits, weights, density):
    state = assert_steps_like_the_specification(masks_of(density, SEVERAL), coding, *WEIGHTS[weights], state_bits)
    assert state.exp_avg.any() and state.exp_avg_sq.any()


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_in_steps_as_launched_is_not_worse_than_the_specification(coding, state_bits, as_launched):
    masks = masks_of(0.3, [TILE + 808])
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, state_bits, steps=1)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_takes_bf16_gradients_and_views_at_any_address(coding, state_bits):
    masks = masks_of(0.3, [TILE + 8, 1001])
    options = dict(grad_dtype=torch.bfloat16, place=misaligned)
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, state_bits, **options)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_on_whole_rows_keeps_the_bits_between_the_selected(coding, state_bits):
    masks = masks_of(0.03, [TILE, 64, 1000])  # all divisible by eight: rows are written whole
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, state_bits)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_rounds_halves_as_the_specification_does(coding, split):
    weight = (1 + torch.arange(128) / 128).to(torch.bfloat16)  # every mantissa
    weight = torch.cat([weight, -weight])
    layouts = [
        make_layout([torch.ones(256, dtype=torch.bool)], indexed=coding == "indices", device=device)
        for device in ("cpu", DEVICE)
    ]
    theirs = State.zeros([weight.clone()], layouts[0], split=split)
    theirs.exp_avg[:] = -weight.float().sign() * 2 * 2.0**-8  # an update of half the distance to the next bf16
    ours, grad = theirs.map(aligned), torch.zeros(256)
    options = dict(step=100, lr=1.0, beta1=0.5, beta2=0.5, eps=1.0, weight_decay=0.0)
    theirs.step(layouts[0], grad, **options)
    ours.step(layouts[1], grad.to(DEVICE), **options, backend="triton")
    halves = weight.float() + weight.float().sign() * 2.0**-8
    assert torch.equal(theirs.weights[0], wagle_kernels.split(halves)[0] if split else halves.to(torch.bfloat16))
    assert torch.equal(ours.weights[0].cpu(), theirs.weights[0])
    assert not split or torch.equal(ours.remainder.cpu(), theirs.remainder)


@pytest.mark.parametrize("numels", [[0], [0, 0], [5, TILE, 9]], ids=str)
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_of_nothing_selected_changes_nothing(coding, numels):
    masks = [torch.zeros(numel, dtype=torch.bool) for numel in numels]
    layout = make_layout(masks, indexed=coding == "indices", device=DEVICE)
    original = [random_patterns(numel, torch.bfloat16) for numel in numels]
    state = State.zeros([weight.clone() for weight in original], layout, state_bits=8, split=True)
    state = state.map(lambda x: x.to(DEVICE))
    state.step(layout, torch.zeros(0, device=DEVICE), step=1, **OPTIONS, backend="triton")
    assert all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(state.weights, original))


@pytest.mark.parametrize("numel", TILED_SIZES[1:])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_takes_any_size(coding, numel):
    masks = [random_bits(numel, 0.6, seed=numel)]
    masks[0][0] = True
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, 8, steps=1)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_of_its_own_state_stays_with_the_specification_over_many_steps(coding, state_bits):
    masks = [random_bits(300, 0.5)]
    layouts = [make_layout(masks, indexed=coding == "indices", device=device) for device in ("cpu", DEVICE)]
    weight = tensors(300, torch.bfloat16)[0]
    theirs = State.zeros([weight.clone()], layouts[0], state_bits=state_bits, split=True)
    ours = State.zeros([weight], layouts[0], state_bits=state_bits, split=True).map(lambda x: x.to(DEVICE))
    for step in range(1, 11):
        grad = tensors(layouts[0].num_selected, seed=step)[1]
        theirs.step(layouts[0], grad, step=step, **OPTIONS)
        ours.step(layouts[1], grad.to(DEVICE), step=step, **OPTIONS, backend="triton")
    off = (ours.map(lambda x: x.cpu()).masters(masks) - theirs.masters(masks)).abs()
    assert off.mean() < 1e-3 * OPTIONS["lr"] and off.max() < 0.5 * OPTIONS["lr"]


def test_sizes_that_do_not_fit_the_layout_are_refused():
    layout = make_layout([torch.ones(64, dtype=torch.bool)], device=DEVICE)
    full, short = torch.zeros(64, device=DEVICE), torch.zeros(63, device=DEVICE)
    for dense, compact, message in (
        (short, full, "Tensor 0 has 63 elements"),
        (full, short, "has 63 elements, the la"),
    ):
        for op in (wagle_kernels.compress, wagle_kernels.scatter):
            with pytest.raises(ValueError, match=message):
                op(dense, layout, 0, compact, backend="triton")
        with pytest.raises(ValueError, match=message):
            wagle_kernels.adamw([dense], layout, compact, full, full, step=1, **OPTIONS, backend="triton")
    with pytest.raises(ValueError, match="must have one dtype"):
        two = make_layout([torch.ones(64, dtype=torch.bool)] * 2, device=DEVICE)
        state = [torch.zeros(128, device=DEVICE)] * 3
        wagle_kernels.adamw([full, full.bfloat16()], two, *state, step=1, **OPTIONS, backend="triton")


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_autograd_notices_that_weights_were_written(backend):
    weight = torch.randn(64, device=DEVICE)
    layout = make_layout([torch.ones(64, dtype=torch.bool)], device=DEVICE)
    zeros = [torch.zeros(64, device=DEVICE) for _ in range(2)]
    before = weight._version
    wagle_kernels.adamw([weight.detach()], layout, torch.ones_like(weight), *zeros, step=1, **OPTIONS, backend=backend)
    middle = weight._version
    wagle_kernels.scatter(weight.detach(), layout, 0, torch.ones_like(weight), backend=backend)
    assert before < middle < weight._version


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_reaches_beyond_32_bits(coding, state_bits, numel, last_program):
    mask, weight = random_bits(numel), tensors(numel, torch.bfloat16)[0]
    near, layout = far_layout(mask, coding)
    expected = State.zeros([weight], near, state_bits=state_bits, split=True)
    expected.step(near, tensors(near.num_selected, seed=1)[1], step=1, **OPTIONS)
    state = expected.map(lambda x: x)
    if state_bits == 8:  # scales are far off by as many groups as there are before
        first = int(layout.groups[-2])
        for name in ("exp_avg_exponent", "exp_avg_sq_exponent"):
            scales = getattr(expected, name)
            setattr(state, name, far(first + scales.numel(), torch.uint8))
            getattr(state, name)[first:] = scales
    for name in ("exp_avg", "exp_avg_sq", "remainder"):
        setattr(state, name, far_copy(getattr(state, name)))
    state.weights = [far_copy(weight)]
    grad = tensors(near.num_selected, seed=2)[1]
    state.step(layout, far_copy(grad), step=2, **OPTIONS, backend="triton")
    expected.step(near, grad, step=2, **OPTIONS)
    state.weights, state.remainder = [state.weights[0][FAR:]], state.remainder[FAR:]
    off = (state.masters([mask]) - expected.masters([mask])).abs()
    assert off.max() < 1e-4 * OPTIONS["lr"] + 2.0**-22 * weight.abs().max()
    assert torch.equal(state.weights[0][~mask], weight[~mask])
    for name in ("exp_avg", "exp_avg_sq"):
        ours, theirs = getattr(state, name)[FAR:], getattr(expected, name)
        assert_few_differ(ours, theirs) if state_bits == 8 else torch.testing.assert_close(ours, theirs)
        assert not getattr(state, name)[:numel].any()
    if state_bits == 8:
        assert torch.equal(state.exp_avg_exponent[first:], expected.exp_avg_exponent)
        assert torch.equal(state.exp_avg_sq_exponent[first:], expected.exp_avg_sq_exponent)


@pytest.mark.gpu
@needs_48_gb
@pytest.mark.parametrize("coding", CODINGS)
def test_more_than_2_to_31_selected_weights_are_updated_like_each_tile_alone(coding):
    packed = torch.full(((LONG + 7) // 8,), 0xFF, dtype=torch.uint8, device=DEVICE)
    packed[-1] = (1 << LONG % 8) - 1
    layout = Layout.of([packed], [LONG], indexed=coding == "indices")
    assert layout.num_selected == LONG
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.empty(LONG, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    dense = torch.empty(LONG, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    ends = [slice(0, TILE), slice(2**31, 2**31 + TILE), slice(LONG - 1001, LONG)]
    starts = [weight[end].clone() for end in ends]
    grad = wagle_kernels.compress(dense, layout, 0, torch.empty_like(dense))
    assert torch.equal(grad, dense)
    moments = [torch.zeros(LONG, device=DEVICE) for _ in range(2)]
    remainder = torch.zeros(LONG, dtype=torch.int16, device=DEVICE)
    wagle_kernels.adamw([weight], layout, grad, *moments, remainder=remainder, step=1, **OPTIONS)
    for end, start in zip(ends, starts):
        alone = make_layout([torch.ones(start.numel(), dtype=torch.bool)], indexed=coding == "indices", device=DEVICE)
        state = State.zeros([start.cpu()], alone, split=True).map(lambda x: x.to(DEVICE))
        state.step(alone, dense[end].clone(), step=1, **OPTIONS)
        for ours, theirs in zip(
            (state.weights[0], state.remainder, state.exp_avg, state.exp_avg_sq), (weight, remainder, *moments)
        ):
            assert torch.equal(ours, theirs[end])
    wagle_kernels.scatter(weight, layout, 0, grad)
    assert torch.equal(weight, dense)
    wagle_kernels.accumulate(moments[0].zero_(), dense)
    assert torch.equal(moments[0][-1001:], dense[-1001:].float())
