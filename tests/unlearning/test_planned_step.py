"""Predicted against measured memory of objectives that look at whole distributions, and of what they hold of the reference."""

import dataclasses

import pytest

from wagle_trl import MaskConfig
from wagle_trl.trainers.memory_watch import longest_row

from ..support.large_trainers import FP32, VOCABULARY, measured

DISTRIBUTIONS = {
    "KL by swap": dict(retain_loss="kl", reference_states="swap"),
    "KL by swap, accumulation": dict(retain_loss="kl", reference_states="swap", gradient_accumulation_steps=2),
    "KL, stored": dict(retain_loss="kl", reference_states="stored"),
    "KL by swap, fp32": dict(retain_loss="kl", reference_states="swap", dtype=FP32),
    "UNDIAL by swap": dict(kind="undial", reference_states="swap"),
    "UNDIAL and KL": dict(kind="undial", retain_loss="kl", reference_states="swap"),
    "ME": dict(kind="me"),
    "ME, other direction": dict(kind="me", direction="model_to_uniform"),
    "IHL": dict(kind="ihl"),
    "PDU": dict(kind="pdu"),
    "KL, dense": dict(retain_loss="kl", density=None),
    "UNDIAL, dense, accumulation": dict(kind="undial", density=None, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("case", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_losses_on_distributions_and_their_reference_are_predicted(case, make_large, record_property):
    case = {"density": 0.3} | case
    density = case.pop("density")
    config = None if density is None else MaskConfig("random", density)
    trainer = make_large(mask_config=config, per_device_train_batch_size=4, count=8, **case)
    plan = trainer.memory.make_plan()
    held = () if density is None else trainer.compute_mask().bits.values()
    training = measured(trainer, trainer.train, *held)
    record_property("bytes", {"training": training, "plan": plan.to_dict()})
    assert plan.training_peak_bytes == pytest.approx(training, rel=0.05)


def test_the_reference_is_a_component_of_its_own(make_large):
    def components(**options):
        options = dict(count=8, per_device_train_batch_size=4, retain_loss="kl") | options
        return make_large(**options).memory.make_plan().training

    mask = MaskConfig("random", 0.3)
    states = 4 * (64 - 8) * 256 * 2  # rows, answer tokens, width, bytes
    stored = components(mask_config=mask, reference_states="stored")
    swapped = components(mask_config=mask, reference_states="swap")
    selected = make_large(mask_config=mask).compute_mask().num_selected
    assert stored["reference"] == states
    assert swapped["reference"] == pytest.approx(states + 2 * selected, rel=1e-4)
    assert {name: size for name, size in stored.items() if name != "reference"} == {
        name: size for name, size in swapped.items() if name != "reference"
    }
    assert (
        components(mask_config=mask, gradient_accumulation_steps=2, reference_states="stored")["reference"]
        == 2 * states
    )
    assert components()["reference"] == states + 2 * VOCABULARY * 256  # a frozen head
    assert components(kind="undial", mask_config=mask, reference_states="stored")["reference"] == 2 * states
    assert "reference" not in components(retain_loss="nll", mask_config=mask)


def test_adapters_and_heads_of_other_kinds_are_planned_with_a_reference(make_large):
    from peft import LoraConfig

    adapters = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_large(retain_loss="kl", peft_config=adapters, per_device_train_batch_size=4, count=8)
    plan = trainer.memory.make_plan()
    assert plan.training["reference"] == 4 * (64 - 8) * 256 * 2
    assert plan.training_peak_bytes == pytest.approx(measured(trainer, trainer.train), rel=0.05)
    trainer = make_large(
        retain_loss="kl", mask_config=MaskConfig("random", 0.3), per_device_train_batch_size=4, count=8
    )
    trainer.split = trainer.state_reference.split = dataclasses.replace(trainer.split, is_linear=False)
    plan, held = trainer.memory.make_plan(), trainer.compute_mask().bits.values()
    assert plan.training_peak_bytes == pytest.approx(measured(trainer, trainer.train, *held), rel=0.05)


def test_every_kind_of_row_is_planned(make_trainer, small_mask, tmp_path):
    (tmp_path / "refusals.txt").write_text(
        "I do not know, and nobody near the old harbour of that town knows it either."
    )
    options = dict(refusals=str(tmp_path / "refusals.txt"), mask_config=small_mask)
    plans = {}
    for kinds, (objective, retain_loss) in {
        2: ("po", "nll"),
        3: ("idkdpo", "nll"),
        4: ("idkdpo", "answer_preservation"),
    }.items():
        memory = make_trainer(objective, retain_loss=retain_loss, **options).memory
        setup = memory._setup()
        assert setup.rows_per_sample == kinds
        assert setup.max_length == max(longest_row(rows) for rows in memory.trainer.streams.values())
        plans[kinds] = memory.make_plan().training
    assert plans[2]["activations"] < plans[3]["activations"] < plans[4]["activations"]
    assert (
        make_trainer("gradient_ascent", mask_config=small_mask, retain_weight=0).memory._setup().rows_per_sample == 1
    )
