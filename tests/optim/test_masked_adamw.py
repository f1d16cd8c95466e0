"""`MaskedAdamW` against `torch.optim.AdamW`, and bit by bit where nothing may move."""

import copy
import dataclasses
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from wagle_kernels import RANK_GROUP, backends, join_split, triton_ops
from wagle_kernels.reference import compaction
from wagle_trl.masks.mask import WeightMask
from wagle_trl.optim.masked_adamw import MaskedAdamW

from ..kernels.helpers import walk_tiles_in_two_steps

DTYPES = [torch.float32, torch.bfloat16]


def make_model(dtype=torch.float32, seed=0, width=31):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(13, width), nn.Tanh(), nn.Linear(width, 17), nn.LayerNorm(17), nn.Linear(17, 1)
        )
    return model.to(dtype)


def make_mask(model, density=0.3, seed=0, empty=()):
    generator = torch.Generator().manual_seed(seed)
    bits = {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters()}
    for name, selected in bits.items():
        selected.view(-1)[0] |= density > 0  # even of a bias with one element
        selected &= name not in empty
    return WeightMask.from_dense(bits)


def batch(step, rows=8):
    x = torch.randn(rows, 13, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True).sin()


def loss_of(model, step):
    x, y = batch(step)
    return ((model(x.to(model[0].weight.dtype)) - y) ** 2).mean()


def train(model, optimizer, steps, max_norm=None):
    for step in steps:
        loss_of(model, step).backward()
        if max_norm:
            optimizer.clip_grad_norm_(max_norm)
        optimizer.step()


def bits(tensor):
    return tensor.detach().clone().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def weights(model):
    return {name: bits(p) for name, p in model.named_parameters()}


def assert_same_bits(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


# AdamW


def test_a_mask_of_ones_is_torchs_adamw():
    ours, theirs = make_model(), make_model()
    mask = make_mask(ours, density=2)
    assert mask.density == 1
    options = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer = MaskedAdamW(ours.named_parameters(), mask, **options)
    reference = torch.optim.AdamW(theirs.parameters(), **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (optimizer, reference)]
    norms = []
    for step in range(20):
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        norms.append(optimizer.clip_grad_norm_(3.0))
        torch.testing.assert_close(norms[-1], nn.utils.clip_grad_norm_(theirs.parameters(), 3.0), rtol=1e-5, atol=0)
        for stepped in (optimizer, reference, *schedules):
            stepped.step()
        reference.zero_grad()
    assert min(norms) < 3.0 < max(norms)  # both sides of the clip
    for a, b, start in zip(ours.parameters(), theirs.parameters(), make_model().parameters()):
        moved = b.detach() - start.detach()
        assert moved.norm() > 1e-3 * b.detach().norm()
        assert relative_error(a.detach() - start.detach(), moved) < 1e-4  # twenty steps that each round


@pytest.mark.parametrize("accumulator_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_added_up_in_the_dtype_asked_for(dtype, accumulator_dtype):
    model = make_model(dtype)
    mask = make_mask(model, density=0.5)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-2, accumulator_dtype=accumulator_dtype)
    optimizer.prepare_accumulation()
    optimizer.attach_hooks()
    gradients = [{n: torch.randn(p.shape).to(dtype) for n, p in model.named_parameters()} for _ in range(3)]
    for gradient in gradients:
        sum((p * gradient[name]).sum() for name, p in model.named_parameters()).backward()
    is_rounded = dtype == torch.bfloat16 and accumulator_dtype == "bfloat16"
    for item, arena in optimizer._slices.values():
        first, *others = (gradient[item.name][mask.dense(item.name)] for gradient in gradients)
        total = first if is_rounded else first.float()
        for other in others:
            total = total + other
        assert arena.grad.dtype == total.dtype
        assert torch.equal(arena.grad[item.selected], total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_of_zeros_leaves_every_bit_as_it_was(dtype):
    model = make_model(dtype)
    before = weights(model)
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model, density=0), lr=0.1, weight_decay=0.1)
    optimizer.attach_hooks()
    train(model, optimizer, range(3), max_norm=1.0)
    assert_same_bits(weights(model), before)
    assert optimizer.state_bytes == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hooks", [False, True])
def test_unselected_weights_keep_every_bit(hooks, dtype):
    model = make_model(dtype)
    mask = make_mask(model, empty=["2.weight", "4.bias"])
    before = weights(model)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.1)
    if hooks:
        optimizer.attach_hooks()
    train(model, optimizer, range(10), max_norm=1.0)
    for name, after in weights(model).items():
        selected = mask.dense(name)
        assert torch.equal(after[~selected], before[name][~selected])
        assert (after[selected] != before[name][selected]).float().mean() > 0.8 or not selected.any()
    assert mask.num_selected_of("2.weight") == 0 and mask.num_selected_of("4.bias") == 0


def test_selected_weights_follow_adamw_on_themselves():
    model, theirs = make_model(), make_model()
    mask = make_mask(model)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    start = dict(make_model().named_parameters())
    for step in range(10):
        train(model, optimizer, [step])
        loss_of(theirs, step).backward()
        reference.step()
        reference.zero_grad()
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                p.copy_(torch.where(mask.dense(name), p, start[name]))
    for a, b in zip(model.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # of ways of up to 0.1


def displacement_errors(steps=100, lr=1e-5):
    """Error of a bf16 weight's displacement relative to fp32 AdamW's, by kind of state, same gradients."""
    start = (torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    mask = WeightMask.from_dense({"w": torch.rand(200, 100, generator=torch.Generator().manual_seed(1)) < 0.2})
    selected = mask.dense("w")
    exact = nn.Parameter(start.float())
    kinds = {"split": {}, "none": {"master": None}, "8 bits": {"state_bits": 8}}
    weights = {kind: nn.Parameter(start.clone()) for kind in kinds}
    reference = torch.optim.AdamW([exact], lr=lr, weight_decay=0.1)
    optimizers = {
        kind: MaskedAdamW([("w", weights[kind])], mask, lr, weight_decay=0.1, **options)
        for kind, options in kinds.items()
    }
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(200, 100, generator=generator) * 0.3
    for _ in range(steps):
        grad = (torch.randn(200, 100, generator=generator) + bias).to(torch.bfloat16)
        exact.grad = grad.float()
        reference.step()
        for kind, optimizer in optimizers.items():
            weights[kind].grad = grad.clone()
            optimizer.step()
    moved = (exact.detach() - start.float())[selected]
    errors = {}
    for kind, weight in weights.items():
        final = weight.detach()[selected]
        remainder = optimizers[kind].state[weight].get("remainder")
        final = final.float() if remainder is None else join_split(final, remainder)
        errors[kind] = relative_error(final - start.float()[selected], moved)
    return errors


def test_bf16_with_a_split_master_follows_fp32_adamw_also_in_8_bits_and_without_one_does_not(record_property):
    errors = displacement_errors()
    record_property("displacement_errors", errors)
    assert errors["split"] < 1e-4
    assert errors["none"] > 0.3
    assert errors["8 bits"] < 0.08


def test_a_bf16_weight_is_its_master_rounded():
    model = make_model(torch.bfloat16)
    optimizer = MaskedAdamW(model.named_parameters(), mask := make_mask(model), lr=1e-4)
    train(model, optimizer, range(5))
    for name, p in model.named_parameters():
        selected = p.detach()[mask.dense(name)]
        master = join_split(selected, optimizer.state[p]["remainder"])
        assert ((master - selected.float()).abs() <= selected.float().abs() * 2**-8).all()
        assert (master != selected.float()).any()


def test_moments_lie_in_one_arena_in_model_order():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask := make_mask(model), lr=1e-3, betas=(0.9, 0.99))
    loss_of(model, 0).backward()
    grads = [p.grad[mask.dense(name)] for name, p in model.named_parameters()]
    optimizer.step()
    state = [optimizer.state[p] for p in model.parameters()]
    assert len({s["exp_avg"].untyped_storage().data_ptr() for s in state}) == 1
    assert all(s["exp_avg"].data_ptr() < t["exp_avg"].data_ptr() for s, t in pairwise(state))
    torch.testing.assert_close(torch.cat([s["exp_avg"] for s in state]), torch.cat(grads) * 0.1)
    torch.testing.assert_close(torch.cat([s["exp_avg_sq"] for s in state]), torch.cat(grads) ** 2 * 0.01)


def test_updates_in_many_runs_are_those_in_one(monkeypatch):
    models = make_model(), make_model()
    for model, tiles in zip(models, (512, 1)):
        monkeypatch.setattr(compaction, "BLOCK_TILES", tiles)
        train(model, MaskedAdamW(model.named_parameters(), make_mask(model), lr=1e-2), range(3))
    assert_same_bits(*map(weights, models))


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("density", [0.03, 0.6])
def test_the_triton_kernels_train_as_the_reference_does(density, state_bits, monkeypatch):
    """Through hooks, accumulation, clipping and several parameters: both give the same weights but for rounding."""

    def run():
        torch.manual_seed(0)
        # A matrix that may have moments of 8 bits, and two small tensors that have 32
        model = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 1, bias=False)).to(torch.bfloat16)
        optimizer = MaskedAdamW(model.named_parameters(), make_mask(model, density), lr=1e-2, state_bits=state_bits)
        optimizer.attach_hooks()
        for step in range(4):
            model(torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).bfloat16()).sin().sum().backward()
            if step % 2:
                optimizer.clip_grad_norm_(0.5)
                optimizer.step()
        master = [
            join_split(p.detach().view(-1), torch.zeros(p.numel(), dtype=torch.int16)) for p in model.parameters()
        ]
        return torch.cat(master)

    expected = run()
    walk_tiles_in_two_steps(monkeypatch)
    monkeypatch.setattr(backends, "_implementation", lambda name, device: triton_ops)
    # Norms are added up in another order, so a weight may round the other way, and what follows from it
    off = (run() - expected).abs()
    assert (off <= 2**-7 * expected.abs()).float().mean() > 0.99 and off.max() < 1e-2


# Gradients


def test_two_backward_passes_are_one_of_the_sum():
    models = make_model(), make_model()
    mask = make_mask(models[0])
    first, second = (MaskedAdamW(model.named_parameters(), mask, lr=1e-2) for model in models)
    first.attach_hooks()
    for step in range(0, 10, 2):
        loss_of(models[0], step).backward()
        loss_of(models[0], step + 1).backward()
        (loss_of(models[1], step) + loss_of(models[1], step + 1)).backward()
        torch.testing.assert_close(first.clip_grad_norm_(0.5), second.clip_grad_norm_(0.5), rtol=1e-5, atol=0)
        first.step()
        second.step()
    for a, b in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # of ways of up to 0.05


@pytest.mark.parametrize("density", [0.03, 0.5])
def test_bf16_gradients_add_up_in_fp32(density):
    weight = nn.Parameter(torch.zeros(100, 100, dtype=torch.bfloat16))
    mask = WeightMask.from_dense({"w": torch.rand(100, 100) < density})
    optimizer = MaskedAdamW([("w", weight)], mask, betas=(0.0, 0.0))
    optimizer.attach_hooks()
    grads = [torch.randn(100, 100).to(torch.bfloat16) for _ in range(5)]
    for step, parts in enumerate((grads[:1], grads[1:])):  # without accumulation, and with
        for grad in parts:
            (weight * grad).sum().backward()
        expected = sum(grad.float() for grad in parts)[mask.dense("w")]
        norm = expected.double().norm().float()
        torch.testing.assert_close(optimizer.clip_grad_norm_(float("inf")), norm, rtol=1e-5, atol=0)
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["exp_avg"], expected), step


@pytest.mark.parametrize("dtype", DTYPES)
def test_hooks_change_no_bit_and_free_the_gradients(dtype):
    models = make_model(dtype), make_model(dtype)
    optimizers = [MaskedAdamW(m.named_parameters(), make_mask(m, empty=["2.bias"]), lr=1e-2) for m in models]
    optimizers[0].attach_hooks()
    for step in range(5):
        for model, optimizer, freed in zip(models, optimizers, (True, False)):
            loss_of(model, step).backward()
            kept = [name for name, p in model.named_parameters() if p.grad is not None]
            assert kept == ([] if freed else [name for name, _ in model.named_parameters()])
            optimizer.clip_grad_norm_(0.5)
            optimizer.step()
            model.zero_grad()
    assert_same_bits(*map(weights, models))
    optimizers[0].remove_hooks()
    loss_of(models[0], 9).backward()
    assert all(p.grad is not None for p in models[0].parameters())


def test_hooks_attached_twice_collect_once_and_are_removed_at_once():
    model, plain = make_model(), make_model()
    mask = make_mask(model)
    optimizer, other = (MaskedAdamW(m.named_parameters(), mask) for m in (model, plain))
    optimizer.attach_hooks()
    optimizer.attach_hooks()
    for m in (model, plain):
        loss_of(m, 0).backward()
    assert optimizer.clip_grad_norm_(1e9) == other.clip_grad_norm_(1e9) > 0
    optimizer.remove_hooks()
    loss_of(model, 1).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("max_norm", [0.01, 1e9, float("inf")])
def test_clipping_is_by_the_norm_of_the_selected_gradients(max_norm):
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask := make_mask(model), lr=1e-2, betas=(0.0, 0.0))
    loss_of(model, 0).backward()
    selected = torch.cat([p.grad[mask.dense(name)] for name, p in model.named_parameters()])
    whole = torch.cat([p.grad.view(-1) for p in model.parameters()])
    norm = optimizer.clip_grad_norm_(max_norm)
    assert optimizer.last_grad_norm == float(norm)
    torch.testing.assert_close(norm, selected.double().norm().float(), rtol=1e-5, atol=0)
    assert norm < 0.9 * whole.norm()
    optimizer.step()
    clipped = torch.cat([optimizer.state[p]["exp_avg"] for p in model.parameters()])
    torch.testing.assert_close(clipped, selected * min(1.0, max_norm / norm), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("hooks", [False, True])
def test_gradients_that_come_after_clipping_are_not_clipped_with_those_before(hooks):
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask := make_mask(model), betas=(0.0, 0.0))
    if hooks:
        optimizer.attach_hooks()
    loss_of(model, 0).backward()
    first = optimizer.clip_grad_norm_(0.01)
    assert optimizer.clip_grad_norm_(float("inf")) == pytest.approx(0.01, rel=1e-3) and first > 0.1
    loss_of(model, 1).backward()
    plain = make_model()
    optimizer.step()
    grads = []
    for step in range(2):
        loss_of(plain, step).backward()
        grads.append({n: p.grad[mask.dense(n)].clone() for n, p in plain.named_parameters()})
        plain.zero_grad()
    for name, p in model.named_parameters():
        expected = grads[0][name] * (0.01 / first) + grads[1][name]
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], expected, rtol=1e-4, atol=1e-6)


NOT_FINITE = r"The gradient of '0\.weight' is NaN or infinite; no weight was changed"


def backward_of(bad, model):
    """Gradients of which those of `0.weight` and `0.bias` are multiplied by `bad`, all others sound."""
    x, y = batch(3)
    hidden = model[:2](x.to(model[0].weight.dtype))
    hidden.register_hook(lambda grad: grad * bad)
    ((model[2:](hidden) - y) ** 2).mean().backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(clip, hooks, bad):
    model = make_model()
    mask = make_mask(model)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-2)
    if hooks:
        optimizer.attach_hooks()
    train(model, optimizer, range(2))
    before, state = weights(model), optimizer.state_dict()["state"]
    saved = {i: {k: v.clone() for k, v in s.items()} for i, s in state.items()}
    backward_of(bad, model)
    with pytest.raises(ValueError, match=NOT_FINITE):
        optimizer.clip_grad_norm_(1.0) if clip else optimizer.step()
    assert_same_bits(weights(model), before)
    assert all(torch.equal(saved[i][k], v) for i, s in optimizer.state_dict()["state"].items() for k, v in s.items())
    optimizer.zero_grad()  # after which training goes on
    train(model, optimizer, [4], max_norm=1.0)
    assert all(p.isfinite().all() for p in model.parameters())


REFUSALS = {  # "!" marks what raises
    "clip, step": "bad clip! step!",
    "step alone, twice": "bad step! step!",
    "clip twice": "bad clip! clip! step!",
    "accumulated before": "good bad clip! step!",
    "accumulated after": "bad good clip! step!",
    "more gradients after the error": "bad clip! good step! good clip! step!",
    "clipped before": "good clip bad clip! step!",
}


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("calls", REFUSALS.values(), ids=REFUSALS)
def test_gradients_that_were_refused_are_refused_until_zero_grad(calls, dtype, state_bits, hooks):
    model, twin = (make_model(dtype, width=320) for _ in range(2))
    mask = make_mask(model)
    optimizer, other = (MaskedAdamW(m.named_parameters(), mask, lr=1e-2, state_bits=state_bits) for m in (model, twin))
    if hooks:
        optimizer.attach_hooks()
    for m, o in ((model, optimizer), (twin, other)):
        train(m, o, range(2))
    actions = {
        "good": lambda: loss_of(model, 2).backward(),
        "bad": lambda: backward_of(float("nan"), model),
        "clip": lambda: optimizer.clip_grad_norm_(0.01),
        "step": optimizer.step,
    }
    for call in calls.split():
        with pytest.raises(ValueError, match=NOT_FINITE) if call[-1] == "!" else nullcontext():
            actions[call.rstrip("!")]()
    assert_same_bits(weights(model), weights(twin))
    for mine, its in zip(optimizer.state.values(), other.state.values()):
        assert all(torch.equal(mine[kind], its[kind]) for kind in its)
    optimizer.zero_grad()
    for m, o in ((model, optimizer), (twin, other)):
        train(m, o, range(3, 5))  # goes on as if nothing had happened
    assert_same_bits(weights(model), weights(twin))


@pytest.mark.parametrize("hooks", [False, True])
def test_a_norm_that_overflows_is_refused_until_zero_grad_also_when_the_sum_is_small_again(hooks):
    weight = nn.Parameter(torch.ones(10))
    optimizer = MaskedAdamW([("w", weight)], WeightMask.from_dense({"w": torch.ones(10)}))
    if hooks:
        optimizer.attach_hooks()
    (weight * 1e30).sum().backward()
    with pytest.raises(ValueError, match="The gradient norm overflows; no weight was changed"):
        optimizer.clip_grad_norm_(1.0)
    (weight * -1e30).sum().backward()
    with pytest.raises(ValueError, match="The gradient norm overflows; no weight was changed"):
        optimizer.step()
    assert (weight == 1).all() and optimizer.state[weight]["step"] == 0
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    assert (weight < 1).all()


def test_unselected_nan_gradients_do_not_matter():
    model = make_model()
    mask = make_mask(model)
    optimizer = MaskedAdamW(model.named_parameters(), mask)
    loss_of(model, 0).backward()
    for name, p in model.named_parameters():
        p.grad[~mask.dense(name)] = float("nan")
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_step_without_gradients_changes_nothing():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model), weight_decay=0.1)
    before = weights(model)
    optimizer.step()
    assert_same_bits(weights(model), before)
    assert all(state["step"] == 0 for state in optimizer.state.values())


def test_zero_grad_drops_what_the_hooks_collected():
    model, fresh = make_model(), make_model()
    optimizers = [MaskedAdamW(m.named_parameters(), make_mask(m)) for m in (model, fresh)]
    optimizers[0].attach_hooks()
    loss_of(model, 5).backward()
    optimizers[0].zero_grad()
    for m, optimizer in zip((model, fresh), optimizers):
        train(m, optimizer, range(2))
    assert_same_bits(weights(model), weights(fresh))


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model), lr=1e-2)

    def closure():
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(20)]
    assert losses[0] == float(loss_of(make_model(), 0).detach())
    assert losses[-1] < losses[0]


# State


def through_file(state):
    """An optimizer's state, its tensors as a file gives them back."""
    flat = {f"{i}.{kind}": tensor.clone() for i, kinds in state["state"].items() for kind, tensor in kinds.items()}
    content = load(save(flat))
    tensors = {i: {kind: content[f"{i}.{kind}"] for kind in kinds} for i, kinds in state["state"].items()}
    return {"state": tensors, "param_groups": copy.deepcopy(state["param_groups"])}


def test_vectors_and_small_tensors_keep_32_bit_moments():
    shapes = {"matrix": (64, 64), "small": (63, 65), "vector": (5000,)}
    named = [(name, nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    mask = WeightMask.from_dense({name: torch.ones(shape) for name, shape in shapes.items()})
    optimizer = MaskedAdamW(named, mask, state_bits=8)
    assert {name: optimizer.state[p]["exp_avg"].dtype for name, p in named} == {
        "matrix": torch.int8,
        "small": torch.float32,
        "vector": torch.float32,
    }


@pytest.mark.parametrize("density", [0.03, 0.5])
def test_8_bit_state_resumes_bit_for_bit_from_a_file(density):
    def build():
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(100, 200).to(torch.bfloat16))
        mask = WeightMask.from_dense({"w": torch.rand(100, 200) < density})
        return parameter, MaskedAdamW([("w", parameter)], mask, lr=1e-3, state_bits=8)

    def run(parameter, optimizer, steps):
        for step in steps:
            parameter.grad = torch.randn(100, 200, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
            optimizer.step()

    (parameter, optimizer), (resumed, other) = build(), build()
    run(parameter, optimizer, range(5))
    resumed.data.copy_(parameter.data)
    other.load_state_dict(through_file(optimizer.state_dict()))
    run(parameter, optimizer, range(5, 10))
    run(resumed, other, range(5, 10))
    assert torch.equal(bits(parameter), bits(resumed))
    assert not torch.equal(bits(parameter), bits(build()[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_resumes_bit_for_bit_from_a_file(dtype):
    model = make_model(dtype)
    mask = make_mask(model)
    optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-3, weight_decay=0.1)
    train(model, optimizer, range(5), max_norm=1.0)
    optimizer.param_groups[0]["lr"] = 5e-3  # as a scheduler does
    resumed = make_model(dtype, seed=1)
    resumed.load_state_dict(load(save(model.state_dict())))
    other = MaskedAdamW(resumed.named_parameters(), mask, lr=1.0)
    saved = through_file(optimizer.state_dict())
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 5e-3
    for index, state in other.state_dict()["state"].items():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} | ({"remainder"} if dtype == torch.bfloat16 else set())
        assert all(torch.equal(state[kind], saved["state"][index][kind]) for kind in state)
        assert state["step"] == 5
    for m, o in ((model, optimizer), (resumed, other)):
        train(m, o, range(5, 10), max_norm=1.0)
    assert_same_bits(weights(model), weights(resumed))


def test_the_state_speaks_per_parameter_with_names():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), mask := make_mask(model, empty=["0.bias"]))
    state = optimizer.state_dict()
    (group,) = state["param_groups"]
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    for index, name in zip(group["params"], group["param_names"]):
        assert state["state"][index]["exp_avg"].shape == (mask.num_selected_of(name),)


def moved_bits(model):
    """A mask with as many bits in every parameter as `make_mask`, elsewhere."""
    return WeightMask.from_dense({n: make_mask(model).dense(n).flip(0) for n, _ in model.named_parameters()})


OTHER_STATES = {
    "another mask": (lambda m: MaskedAdamW(m.named_parameters(), make_mask(m, seed=1)), "belongs to another mask"),
    "other bits, same counts": (lambda m: MaskedAdamW(m.named_parameters(), moved_bits(m)), "belongs to another mask"),
    "other groups": (
        lambda m: MaskedAdamW([{"params": [p]} for p in m.named_parameters()], make_mask(m)),
        "or to other parameter groups",
    ),
    "no master": (
        lambda m: MaskedAdamW(m.named_parameters(), make_mask(m), master=None),
        r"state of '0\.weight' has another dtype, master or number of state bits",
    ),
    "torch's own": (lambda m: torch.optim.AdamW(m.parameters()), "belongs to another mask"),
}


@pytest.mark.parametrize(("build", "message"), OTHER_STATES.values(), ids=OTHER_STATES)
def test_another_optimizers_state_is_refused_and_changes_nothing(build, message):
    model = make_model(torch.bfloat16)
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model))
    train(model, optimizer, range(2))
    saved = through_file(optimizer.state_dict())
    other = build(model)
    loss_of(model, 3).backward()
    other.step()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[kind], saved["state"][index][kind]) for kind in state)


def test_parameters_of_both_dtypes_share_a_group_and_resume():
    def build():
        model = make_model()
        model[0].to(torch.bfloat16)
        return model, MaskedAdamW(model.named_parameters(), make_mask(model), lr=1e-3)

    def run(model, optimizer, steps):
        for step in steps:
            x, y = batch(step)
            hidden = model[0](x.to(torch.bfloat16)).float()
            ((model[1:](hidden) - y) ** 2).mean().backward()
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()

    (model, optimizer), (resumed, other) = build(), build()
    run(model, optimizer, range(4))
    assert {"remainder" in optimizer.state[p] for p in model[0].parameters()} == {True}
    assert {"remainder" in optimizer.state[p] for p in model[2].parameters()} == {False}
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(through_file(optimizer.state_dict()))
    run(model, optimizer, range(4, 8))
    run(resumed, other, range(4, 8))
    assert_same_bits(weights(model), weights(resumed))
    changed = [name for name, before in weights(build()[0]).items() if not torch.equal(before, weights(model)[name])]
    assert changed == [name for name, _ in model.named_parameters()]


def test_groups_keep_their_own_options():
    model = make_model()
    named = dict(model.named_parameters())
    decay = [(name, p) for name, p in named.items() if p.dim() > 1]
    plain = [(name, p) for name, p in named.items() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "lr": 0.0, "weight_decay": 0.0}]
    before = weights(model)
    optimizer = MaskedAdamW(groups, mask := make_mask(model), lr=1e-2)
    train(model, optimizer, range(3))
    for name, after in weights(model).items():
        assert torch.equal(after, before[name]) == (named[name].dim() == 1)
    theirs = make_model()
    reference = torch.optim.AdamW([p for p in theirs.parameters() if p.dim() > 1], lr=1e-2, weight_decay=0.1)
    loss_of(theirs, 0).backward()
    reference.step()
    again = make_model()
    train(
        again,
        MaskedAdamW(
            [{"params": [(n, p) for n, p in again.named_parameters() if p.dim() > 1], "weight_decay": 0.1}],
            mask,
            lr=1e-2,
        ),
        [0],
    )
    selected = mask.dense("0.weight")
    torch.testing.assert_close(again[0].weight[selected], theirs[0].weight[selected], rtol=1e-5, atol=1e-7)


def test_a_scheduler_sets_the_learning_rate():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 3 else 0.0)
    for step in range(6):
        before = weights(model)
        train(model, optimizer, [step])
        schedule.step()
        assert all(torch.equal(b, before[n]) for n, b in weights(model).items()) == (step >= 3)


# Memory


def reachable(root):
    """Every tensor reachable from an object through dicts, sequences, dataclasses and attributes."""
    seen, found, stack = set(), [], [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, str | int | float | type(None)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            stack += item
        elif dataclasses.is_dataclass(item) or isinstance(item, MaskedAdamW):
            stack += vars(item).values()
    return found


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_takes_its_share_of_the_selected_weights(dtype, state_bits, allocations, record_property):
    numel, density = 4 * 1000 * 1000, 0.05
    parameters = [(f"{i}.weight", nn.Parameter(torch.zeros(1000, 1000, dtype=dtype))) for i in range(4)]
    mask = WeightMask.from_dense({name: torch.rand(1000, 1000) < density for name, _ in parameters})
    with allocations:
        optimizer = MaskedAdamW(parameters, mask, state_bits=state_bits)
    optimizer.attach_hooks()
    sum((p * 1.0).sum() for _, p in parameters).backward()
    optimizer.step()

    own = {p.untyped_storage().data_ptr() for _, p in parameters}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in reachable(optimizer)}
    measured = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)
    selected = mask.num_selected
    record_property("bytes", {"walked": measured, "peak of construction": allocations.peak})
    assert selected == pytest.approx(density * numel, rel=0.01)
    per_weight = 2 * state_bits / 8 + (2 + 2 if dtype == torch.bfloat16 else 4)  # moments, gradient, remainder
    positions = 2  # bytes of an index; the mask's bits were there before
    assert measured <= density * 1.01 * numel * (per_weight + positions) + 2**20
    assert allocations.peak <= density * 1.01 * numel * (per_weight + positions) + 2**20
    exponents = 0 if state_bits == 32 else 2 * selected / RANK_GROUP
    assert optimizer.state_bytes == pytest.approx(selected * per_weight + exponents, rel=0.01)
    assert measured >= selected * (per_weight + positions)  # the walk found the arenas and the positions
    assert all(p.grad is None for _, p in parameters)


# Bad input


def test_options_of_a_group_are_checked_as_well():
    model = make_model()
    groups = [{"params": list(model.named_parameters()), "state_bits": 16}]
    with pytest.raises(ValueError, match="state_bits must be 8 or 32, got 16"):
        MaskedAdamW(groups, make_mask(model))


def test_a_mask_that_names_no_parameter_is_refused():
    model = make_model()
    for named, mask in (
        (model.named_parameters(), WeightMask.from_dense({"other.weight": torch.ones(3)})),
        ([], make_mask(model)),
    ):
        with pytest.raises(ValueError, match="The mask names none of the given parameters; check that their names ma"):
            MaskedAdamW(named, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_refused(dtype):
    model = make_model(dtype)
    with pytest.raises(ValueError, match=rf"'0\.weight' is {dtype}; load the model in bfloat16 or float32"):
        MaskedAdamW(model.named_parameters(), make_mask(model))


def test_weights_of_another_shape_or_layout_are_refused():
    mask = WeightMask.from_dense({"w": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"'w' has shape \(4, 3\), but its mask has shape \(3, 4\)"):
        MaskedAdamW([("w", nn.Parameter(torch.ones(4, 3)))], mask)
    with pytest.raises(ValueError, match=r"'w' is not contiguous; call `\.contiguous\(\)`"):
        MaskedAdamW([("w", nn.Parameter(torch.ones(4, 3).t()))], mask)


def transpose(model):
    model[0].weight.data = model[0].weight.data.t()


def cut(model):
    model[0].weight.data = model[0].weight.data[:4].clone()


CHANGES = {
    "half": (nn.Module.half, r"torch\.float16 of shape \(31, 13\) on cpu"),
    "bfloat16": (lambda model: model.to(torch.bfloat16), r"torch\.bfloat16 of shape \(31, 13\) on cpu"),
    "transposed": (transpose, r"torch\.float32 of shape \(13, 31\) on cpu, not contiguous,"),
    "cut": (cut, r"torch\.float32 of shape \(4, 13\) on cpu"),
    "moved": (lambda model: model.to("cuda"), r"torch\.float32 of shape \(31, 13\) on cuda:0"),
}


@pytest.mark.parametrize(
    ("change", "now"),
    [pytest.param(*case, id=name, marks=pytest.mark.gpu if name == "moved" else ()) for name, case in CHANGES.items()],
)
@pytest.mark.parametrize("hooks", [False, True])
def test_parameters_that_were_converted_or_moved_are_refused(hooks, change, now):
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), make_mask(model))
    if hooks:
        optimizer.attach_hooks()
    loss_of(model, 0).backward()
    if not hooks:
        optimizer.clip_grad_norm_(1.0)  # else the old gradients would be in the way of the conversion
    change(model)
    before = weights(model)
    message = (
        rf"'0\.weight' was torch\.float32 of shape \(31, 13\) on cpu when the optimizer was made and is {now} now"
    )
    for call in (optimizer.step, lambda: optimizer.clip_grad_norm_(1.0)):
        with pytest.raises(ValueError, match=message + "; convert or move the model first"):
            call()
    if hooks:
        with pytest.raises(ValueError, match=message):
            model[0].weight.sum().backward()
    assert_same_bits(weights(model), before)
    assert all(state["step"] == 0 for state in optimizer.state.values())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"eps": -1e-8}, "eps must not be negative, got -1e-08"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"state_bits": 16}, "state_bits must be 8 or 32, got 16"),
        ({"master": "fp32"}, "master must be 'split' or None, got 'fp32'"),
    ],
    ids=str,
)
def test_options_fail_at_construction_and_echo_the_value(option, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        MaskedAdamW(model.named_parameters(), make_mask(model), **option)
