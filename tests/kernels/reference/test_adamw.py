"""AdamW of the specification, against torch."""

import pytest
import torch

from wagle_kernels import TILE
from wagle_kernels.reference import compaction

from ..helpers import CODINGS, SIZES, State, make_layout, masks_of, tensors

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
            patch.setattr(compaction, "BLOCK_TILES", 2)
            again.step(layout, grad, step=step, **options)
    off = (small.masters(masks) - single.masters(masks)).abs() / options["lr"]
    assert off.mean() < 0.1 and off.max() < 3
    assert small.exp_avg.dtype == torch.int8 and small.exp_avg_sq.min() >= 1
    for name in ("exp_avg", "exp_avg_sq", "exp_avg_exponent", "exp_avg_sq_exponent"):
        assert torch.equal(getattr(small, name), getattr(again, name)), name
    assert torch.equal(small.masters(masks), again.masters(masks))
