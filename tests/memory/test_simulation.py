"""A step on a copy without data takes the memory that the step takes in truth, and touches nothing of the model."""

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from wagle_trl.losses.lm_head import LinearHead
from wagle_trl.losses.per_sample import fused_sample_losses, sample_losses
from wagle_trl.losses.vocabulary import kl_to_reference
from wagle_trl.masks.scope import scope_parameters
from wagle_trl.memory.allocations import Allocations
from wagle_trl.memory.checkpointing import checkpointed_layers
from wagle_trl.memory.simulation import (
    Simulation,
    Step,
    WorkingMemory,
    copy_without_data,
    kernels_of_gpu,
    losses_on_gpu,
)

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
ROWS, LENGTH = 3, 48
TOLERANCE = 0.01


def all_of(model):
    return frozenset(name for name, _ in model.named_parameters())


def named_tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


def make_step(trainable, checkpointing=False, **options):
    return Step(ROWS, LENGTH, trainable, checkpointing, **options)


def simulate(model, losses, step):
    return Simulation(lambda: copy_without_data(model)).run(losses, step)


def measure(model, losses, step, padding=5):
    """The step on the model itself."""
    model.train(step.training)
    hooks = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in step.trainable)
        parameter.grad = None
        if parameter.requires_grad and not step.keep_gradients:
            hooks.append(parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)))
    gc.collect()
    held = [*model.parameters(), *model.buffers()]
    with Allocations(held) as memory, checkpointed_layers(model, step.gradient_checkpointing):
        weights = memory.current
        ids = torch.randint(3, 300, (step.rows, step.length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
        if padding:
            batch["attention_mask"][0, -padding:] = 0
        with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
            means, _ = losses(model, batch)
        kept = memory.current - weights
        means.sum().backward()
    for hook in hooks:
        hook.remove()
    return WorkingMemory(kept, memory.peak - weights)


def assert_close(simulated, measured):
    assert simulated.kept == pytest.approx(measured.kept, rel=TOLERANCE)
    assert simulated.peak == pytest.approx(measured.peak, rel=TOLERANCE)


# As in truth


# Scope, tied embeddings, options of the step
LLAMAS = [
    ("blocks", False, {}),
    ("all", False, {}),
    ("all", True, {}),
    ("blocks", True, {"checkpointing": True}),
    ("all", False, {"checkpointing": True}),
    ("all", True, {"checkpointing": True, "keep_gradients": True}),
    ("blocks", False, {"training": True, "keep_gradients": True}),
    ("all", True, {"training": True, "checkpointing": True}),
    ("all", False, {"training": True, "autocast": True}),
    ("blocks", True, {"training": True, "checkpointing": True, "keep_gradients": True, "autocast": True}),
    ("all", False, {"checkpointing": True, "autocast": True}),
]


@pytest.mark.parametrize(("scope", "tied", "options"), LLAMAS, ids=str)
def test_a_step_of_a_llama_takes_what_it_takes_in_truth(scope, tied, options, tiny_model):
    model = tiny_model(**SIZES, tie_word_embeddings=tied)
    step = make_step(frozenset(scope_parameters(model)) if scope == "blocks" else all_of(model), **options)
    simulated = simulate(model, sample_losses, step)
    assert_close(simulated, measure(model, sample_losses, step))
    assert 10**5 < simulated.kept < simulated.peak


SHAPE = {"vocab_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, **SIZES}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=128, n_layer=2, n_head=4)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=16)),
    "qwen3 bf16": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)).bfloat16(),
}


@pytest.mark.parametrize(("name", "training"), [("gpt2", True), *((name, False) for name in OTHERS)])
def test_a_step_of_other_models_takes_what_it_takes_in_truth(name, training):
    model = OTHERS[name]()
    step = make_step(all_of(model), training=training)  # GPT-2 has dropout
    assert_close(simulate(model, sample_losses, step), measure(model, sample_losses, step))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_rows_without_padding_take_no_more(checkpointing, tiny_model):
    model = tiny_model(**SIZES)
    step = make_step(all_of(model), checkpointing)
    simulated, measured = simulate(model, sample_losses, step), measure(model, sample_losses, step, padding=0)
    assert 0.9 * simulated.peak < measured.peak <= simulated.peak
    assert 0.9 * simulated.kept < measured.kept <= simulated.kept


def test_checkpointing_of_the_model_itself_counts_as_the_steps(tiny_model):
    model = tiny_model(**SIZES)
    plain, checkpointed = (make_step(all_of(model), c, training=True, keep_gradients=True) for c in (False, True))
    expected = [simulate(model, sample_losses, step) for step in (plain, checkpointed)]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert [simulate(model, sample_losses, step) for step in (plain, checkpointed)] == expected
    assert_close(expected[1], measure(model, sample_losses, plain))  # where transformers checkpoints


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("losses", [sample_losses, fused_sample_losses])
def test_lora_wrapped_models_take_what_they_take_in_truth(losses, checkpointing, tiny_model):
    model = tiny_model(**SIZES)
    if losses is fused_sample_losses:
        add_fused_lm_head(model)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    model = get_peft_model(model, lora)
    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    assert 0 < len(trainable) < len(all_of(model))
    step = make_step(trainable, checkpointing, training=True, keep_gradients=True)
    assert_close(simulate(model, losses, step), measure(model, losses, step))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_models_with_a_fused_head_take_what_they_take_in_truth(tied, autocast, tiny_model):
    model = tiny_model(**SIZES, tie_word_embeddings=tied)
    add_fused_lm_head(model)
    step = make_step(all_of(model), True, training=True, autocast=autocast)
    assert_close(simulate(model, fused_sample_losses, step), measure(model, fused_sample_losses, step))


def test_steps_do_not_depend_on_those_before(tiny_model):
    model = tiny_model(**SIZES)
    blocks = frozenset(scope_parameters(model))
    steps = [
        make_step(all_of(model), True, keep_gradients=True),
        make_step(all_of(model), True),
        make_step(blocks, training=True),
    ]
    alone = [simulate(model, sample_losses, step) for step in steps]
    assert len(set(alone)) == len(steps)
    simulation = Simulation(lambda: copy_without_data(model))
    for order in ((0, 1, 2), (2, 1, 0)):
        assert [simulation.run(sample_losses, steps[i]) for i in order] == [alone[i] for i in order]


# The head on a GPU


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_head_of_a_gpu_takes_a_tile_and_the_gradients(tied, tiny_model):
    vocabulary, tokens = 50_000, ROWS * (LENGTH - 1)
    model = tiny_model(hidden_size=32, vocab_size=vocabulary, tie_word_embeddings=tied)
    add_fused_lm_head(model)
    step = make_step(all_of(model), True)
    on_gpu, on_cpu = (simulate(model, losses, step) for losses in (losses_on_gpu, fused_sample_losses))
    tile, gradient = 4 * tokens * 32768, 4 * vocabulary * 32
    assert tile + gradient < on_gpu.peak < 1.1 * (tile + gradient)
    assert on_gpu.peak < 0.5 * on_cpu.peak
    assert on_gpu.kept == pytest.approx(on_cpu.kept, rel=0.05)
    frozen = simulate(model, losses_on_gpu, make_step(frozenset(scope_parameters(model)), True))
    assert tile < frozen.peak < 1.1 * tile


@pytest.mark.parametrize("trains_head", [False, True], ids=["frozen head", "trained head"])
def test_a_divergence_on_a_gpu_takes_two_tiles_and_the_gradients(trains_head, tiny_model):
    width, vocabulary, tokens = 32, 50_000, ROWS * LENGTH
    model = tiny_model(hidden_size=width, vocab_size=vocabulary)

    def losses(model, batch):
        states = model.model(batch["input_ids"]).last_hidden_state.flatten(0, 1)
        head = LinearHead.of(model)
        return kl_to_reference(head, states, head, states.detach()), torch.ones(())

    def losses_of_gpu(model, batch):
        with kernels_of_gpu():
            return losses(model, batch)

    step = make_step(all_of(model) if trains_head else frozenset(scope_parameters(model)), True)
    on_gpu, on_cpu = (simulate(model, used, step) for used in (losses_of_gpu, losses))
    tiles, gradient = 2 * 4 * tokens * 32768, 4 * vocabulary * width if trains_head else 0
    assert tiles + gradient < on_gpu.peak < 1.1 * (tiles + gradient)
    assert on_gpu.peak < 0.6 * on_cpu.peak
    assert on_gpu.kept == pytest.approx(on_cpu.kept, rel=0.05)


# Nothing real is touched


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
def test_the_model_is_left_as_it_was(fails, tiny_model):
    model = tiny_model()
    model.eval()
    model.model.layers[0].mlp.train()
    model.lm_head.weight.requires_grad_(False)
    weight = model.model.norm.weight
    weight.grad = torch.ones_like(weight)
    tensors = {name: (t, t.detach().clone(), t.requires_grad, t.grad) for name, t in named_tensors(model)}
    modules = {name: (module.training, dict(vars(module))) for name, module in model.named_modules()}

    def losses(copied, batch):
        assert copied is not model and copied.training
        if fails:
            raise ArithmeticError
        return sample_losses(copied, batch)

    with pytest.raises(ArithmeticError) if fails else nullcontext():
        simulate(model, losses, make_step(all_of(model), True, training=True, keep_gradients=True))
    for name, tensor in named_tensors(model):
        before, values, requires_grad, grad = tensors[name]
        assert tensor is before and torch.equal(tensor, values)
        assert tensor.requires_grad == requires_grad and tensor.grad is grad
        assert not tensor._post_accumulate_grad_hooks
    assert (weight.grad == 1).all()
    assert {name: (module.training, dict(vars(module))) for name, module in model.named_modules()} == modules


def test_the_copy_takes_no_memory(tiny_model):
    model = tiny_model(tie_word_embeddings=True)
    model.model.norm.scratch = torch.ones(7)  # tensors that are no buffers
    model.model.norm.weight.grad = torch.ones(32)
    simulation = Simulation(lambda: copy_without_data(model))
    weights, copied = simulation.weights(), simulation.model
    assert {name: (t.shape, t.dtype, t.device) for name, t in weights.items()} == {
        name: (t.shape, t.dtype, t.device) for name, t in named_tensors(model)
    }
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert copied.model.norm.weight.grad is None
    for tensor in (*weights.values(), copied.model.norm.scratch):
        assert tensor.untyped_storage().device.type == "meta"


def test_the_copy_has_the_type_of_weights_that_is_asked_for(tiny_model):
    model = tiny_model()
    weights = Simulation(lambda: copy_without_data(model, torch.bfloat16)).weights()
    changed = {name for name, tensor in weights.items() if tensor.dtype == torch.bfloat16}
    assert changed == all_of(model) < set(weights)  # rotary frequencies stay


LOOKING = {
    "item": lambda means: means.sum().item(),
    "if": lambda means: bool((means > 0).any()),
    "numpy": lambda means: means.detach().numpy().sum(),
    "real weights": None,
}


@pytest.mark.parametrize("how", LOOKING)
def test_losses_that_look_at_values_fail(how, tiny_model):
    model = tiny_model()
    simulation = Simulation(lambda: copy_without_data(model))

    def losses(copied, batch):
        means, num_tokens = sample_losses(model if how == "real weights" else copied, batch)
        if how != "real weights":
            LOOKING[how](means)
        return means, num_tokens

    before = copy.deepcopy(model.state_dict())
    with pytest.raises((RuntimeError, AssertionError)):
        simulation.run(losses, make_step(all_of(model)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_plain_module_simulates_too():
    model = nn.Sequential(nn.Embedding(320, 64), nn.Linear(64, 1))

    def losses(model, batch):
        out = model(batch["input_ids"]).mean((1, 2))
        return out, torch.ones_like(out)

    step = make_step(all_of(model), keep_gradients=True)
    assert_close(simulate(model, losses, step), measure(model, losses, step))
