"""Plans of large models from their shape alone; tests/trainers/test_memory_watch.py compares plans of small ones with runs."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from wagle_trl import MaskConfig
from wagle_trl.memory.simulation import losses_on_gpu
from wagle_trl.planning.advice import advise, suggest
from wagle_trl.planning.planner import CONTEXT_BYTES, Planner, Reference, Setup, plan_table

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
NUM_WEIGHTS = 6_738_415_616
IN_SCOPE = NUM_WEIGHTS - 2 * 32000 * 4096
GB = 10**9


def build(dtype):
    return AutoModelForCausalLM.from_config(LLAMA_2_7B, dtype=getattr(torch, dtype))


@pytest.fixture(scope="module")
def planner():
    """One for all tests: it remembers what it has simulated."""
    return Planner(build, losses_on_gpu, on_gpu=True)


@pytest.fixture
def setup():
    """NPO of Llama-2-7b as its issue is written: 4 forget and 4 retain rows of 256 tokens."""
    return Setup(
        mask_config=MaskConfig(),
        mask=None,
        dtype="bfloat16",
        optim="adamw_8bit",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        max_length=256,
        bf16=True,
    )


def with_density(setup, density, **changes):
    return replace(setup, mask_config=MaskConfig(mask_density=density), **changes)


def test_7b_is_planned_without_its_weights(planner, setup):
    plan = planner.plan(setup, 24 * GB)
    assert plan.training["weights"] == pytest.approx(2 * NUM_WEIGHTS, rel=1e-4)
    assert plan.training["moments"] == pytest.approx(0.05 * 2 * IN_SCOPE, rel=0.05)
    assert plan.training["remainders"] == pytest.approx(0.05 * 2 * IN_SCOPE, rel=0.01)
    assert plan.training["gradients"] == pytest.approx(0.05 * 4 * IN_SCOPE, rel=0.02)
    assert plan.training["positions"] == pytest.approx(0.05 * 2 * IN_SCOPE, rel=0.05)
    assert plan.training["CUDA context"] == CONTEXT_BYTES
    assert plan.training_peak_bytes == sum(plan.training.values())


def test_7b_at_a_density_of_5_percent_fits_24_gb(planner, setup):
    plan = planner.plan(setup, 24 * GB)
    assert plan.fits and suggest(planner, setup, 24 * GB) == {}
    assert plan.training_peak_bytes < 19 * GB
    assert plan.tier.name == "sweeps"
    assert plan.off_device_bytes == {"disk": pytest.approx(2 * 4 * IN_SCOPE, rel=1e-3)}


def test_7b_at_a_density_of_50_percent_fits_40_gb(planner, setup):
    half = with_density(setup, 0.5)
    assert suggest(planner, half, 40 * GB) == {"accumulator_dtype": "bfloat16"}
    assert planner.plan(replace(half, gradient_accumulation_steps=1), 40 * GB).fits
    assert not planner.plan(half, 24 * GB).fits


def test_attribution_takes_the_room_there_is(planner, setup):
    tiers = [planner.plan(setup, capacity * GB).tier for capacity in (20, 24, 80)]
    assert [tier.name for tier in tiers] == ["sweeps", "sweeps", "resident"]
    assert tiers[0].sweeps > tiers[1].sweeps
    assert planner.plan(setup).tier.name == "resident"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"gradient_checkpointing": False, "max_length": 512}, {"gradient_checkpointing": True}),
        ({"optim": "adamw_torch", "mask_config": MaskConfig(mask_density=0.13)}, {"optim": "adamw_8bit"}),
        ({"mask_config": MaskConfig(mask_density=0.36), "gradient_accumulation_steps": 1}, {"mask_density": 0.18}),
    ],
    ids=["precision", "checkpointing", "8-bit state", "density"],
)
def test_one_change_is_suggested_where_one_is_enough(changes, expected, planner, setup):
    setup = replace(setup, **changes)
    assert not planner.plan(setup, 24 * GB).fits
    assert suggest(planner, setup, 24 * GB) == expected


@pytest.mark.slow
def test_a_smaller_batch_accumulates_longer(planner, setup):
    large = replace(setup, per_device_train_batch_size=32, max_length=512)
    changes = suggest(planner, large, 24 * GB)
    assert set(changes) == {"per_device_train_batch_size", "gradient_accumulation_steps"}
    assert changes["per_device_train_batch_size"] * changes["gradient_accumulation_steps"] == 32 * 4


@pytest.mark.parametrize("capacity", [pytest.param(18, marks=pytest.mark.slow), 20, 24])
def test_what_is_suggested_fits_and_nothing_of_it_is_idle(capacity, planner, setup):
    setup = with_density(setup, 0.5, optim="adamw_torch", dtype="float32", max_length=512)
    changes = suggest(planner, setup, capacity * GB)
    applied = dict(changes)
    if "mask_density" in applied:
        applied["mask_config"] = MaskConfig(mask_density=applied.pop("mask_density"))
    assert planner.plan(replace(setup, **applied), capacity * GB).fits
    for name in applied:
        if name not in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            without = {key: value for key, value in applied.items() if key != name}
            assert not planner.plan(replace(setup, **without), capacity * GB).fits, name


def test_what_no_option_mends_is_said(planner, setup):
    assert suggest(planner, setup, 12 * GB) is None
    assert "no option makes this model fit" in advise(planner, setup, 12 * GB)


def test_advice_is_one_sentence_with_both_numbers(planner, setup):
    text = advise(planner, with_density(setup, 0.36, gradient_accumulation_steps=1), 24 * GB)
    assert text.startswith("By plan this run needs 30.0") and "of 24.0 GB" in text
    assert text.endswith("makes it fit: mask_density=0.18.") and "\n" not in text
    assert "it should fit" in advise(planner, setup, 24 * GB)


def test_the_table_has_every_component_and_the_totals(planner, setup):
    plan = planner.plan(setup, 24 * GB)
    table = plan_table(plan)
    names = list(table.columns[0].cells)
    assert set(names) == {*plan.training, *plan.attribution, "total"} and names[-1] == "total"
    assert list(table.columns[2].cells)[-1] == f"{plan.training_peak_bytes / GB:.2f}"
    assert table.title == "Fits 24.0 GB" and "on the disk" in table.caption


def test_the_reference_takes_what_it_holds_and_the_losses_of_training_what_they_compute(planner, setup):
    plain = planner.plan(setup).training
    held = planner.plan(replace(setup, reference=Reference(1, swaps=True, answer_length=100))).training
    states = 4 * 4 * 100 * 4096 * 2  # rows, micro-batches, tokens, width, bytes
    assert held.pop("reference") == pytest.approx(states + 0.05 * 2 * IN_SCOPE, rel=1e-6)
    assert held == plain

    def losses(model, batch):
        means, num_tokens = losses_on_gpu(model, batch)
        return means + 0 * torch.zeros(2**28).sum(), num_tokens  # 1 GiB, and no longer at the end

    other = Planner(build, losses_on_gpu, on_gpu=True, training_losses=losses).plan(setup)
    assert other.training["backward pass"] > 0.8 * 2**30 > plain["backward pass"]
    assert other.attribution == planner.plan(setup).attribution


def test_scores_that_read_no_data_need_no_attribution(planner, setup):
    plan = planner.plan(replace(setup, mask_config=MaskConfig("magnitude")), 24 * GB)
    assert plan.attribution is None and plan.attribution_peak_bytes is None and plan.fits
    assert plan.to_dict()["attribution_memory"] is None
