import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from wagle_trl import MaskConfig
from wagle_trl.unlearning import trajectory
from wagle_trl.unlearning.trajectory import evenly_spaced


def probabilities(trainer, name):
    key = f"{name}_probability"
    return {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}


def test_probabilities_are_logged_at_the_start_every_few_steps_and_at_the_end(make_trainer):
    trainer = make_trainer(max_steps=5, trajectory_steps=2)
    trainer.train()
    assert list(probabilities(trainer, "forget")) == [0, 2, 4, 5]
    assert list(probabilities(trainer, "retain")) == [0, 2, 4, 5]


def test_a_probability_is_the_mean_of_exp_of_minus_the_rows_mean_losses(make_trainer, log_probs_of):
    trainer = make_trainer(trajectory_steps=10, trajectory_rows=3)
    rows = evenly_spaced(trainer.train_dataset, 3)
    expected = torch.stack([log_probs_of(trainer.model, row).mean().exp() for row in rows]).mean()
    trainer.train()
    assert len(rows) == 3
    assert probabilities(trainer, "forget")[0] == pytest.approx(expected.item(), rel=1e-5)


def test_named_evaluation_sets_are_watched_too(make_trainer, retain_rows):
    alone = make_trainer(trajectory_steps=10)
    alone.train()
    trainer = make_trainer(
        trajectory_steps=10, eval_dataset={"unseen_retain": retain_rows.select(range(2)), "forget": retain_rows}
    )
    trainer.train()
    first, expected = trainer.state.log_history[0], alone.state.log_history[0]
    assert first["forget_probability"] == expected["forget_probability"] != first["unseen_retain_probability"]
    assert list(first)[:3] == ["forget_probability", "retain_probability", "unseen_retain_probability"]


def test_streamed_evaluation_sets_are_not_watched(make_trainer, retain_rows):
    trainer = make_trainer(trajectory_steps=10, eval_dataset={"stream": retain_rows.to_iterable_dataset()})
    trainer.train()
    assert "stream_probability" not in trainer.state.log_history[0]


RUNS = {
    "dense": {},
    "masked": {"mask_config": MaskConfig(mask_score="random", mask_density=0.5)},
    "accumulated": {"gradient_accumulation_steps": 2, "mask_config": MaskConfig(mask_score="random")},
    "checkpointed": {"gradient_checkpointing": True},
    "bf16": {"bf16": True, "use_cpu": True},
    "adapters": {"peft_config": LoraConfig(lora_dropout=0.1)},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 1},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_watching_changes_no_bit_of_the_run(make_trainer, tiny_model, snapshot, retain_rows, options):
    finals = []
    for steps in (0, 1):
        trainer = make_trainer(
            model=tiny_model(attention_dropout=0.1),
            trajectory_steps=steps,
            seed=3,
            eval_dataset={"unseen_retain": retain_rows.select(range(3))},
            **options,
        )
        trainer.train()
        finals.append((snapshot(trainer.model), [e for e in trainer.state.log_history if "loss" in e]))
    (alone, losses), (watched, others) = finals
    assert len(losses) == 3 and losses == others
    assert all(torch.equal(weight, watched[name]) for name, weight in alone.items())


def test_a_run_that_a_callback_ends_is_measured_at_its_end(make_trainer):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = make_trainer(trajectory_steps=2, max_steps=5, callbacks=[Stop()])
    trainer.train()
    assert list(probabilities(trainer, "forget")) == [0, 2, 3]


def test_a_resumed_run_has_the_history_of_one_that_was_not_interrupted(make_trainer, small_mask):
    options = dict(trajectory_steps=1, max_steps=3, save_strategy="steps", save_steps=1, mask_config=small_mask)
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert probabilities(resumed, "retain") == probabilities(whole, "retain")
    assert list(probabilities(whole, "retain")) == [0, 1, 2, 3]


def test_every_process_has_the_values_of_the_first(make_trainer, monkeypatch):
    monkeypatch.setattr(trajectory, "broadcast_", lambda values: values.fill_(0.25))
    trainer = make_trainer(trajectory_steps=1)
    trainer.train()
    assert set(probabilities(trainer, "retain").values()) == {0.25}


def test_zero_steps_watch_nothing(make_trainer):
    trainer = make_trainer(trajectory_steps=0)
    trainer.train()
    assert not probabilities(trainer, "forget")


@pytest.mark.parametrize(("option", "value"), [("trajectory_steps", -1), ("trajectory_rows", 0)])
def test_options_out_of_range_are_refused(make_config, option, value):
    with pytest.raises(ValueError, match=f"{option} must .* got {value}"):
        make_config("npo", **{option: value})


def test_rows_are_evenly_spaced(retain_rows):
    assert evenly_spaced(retain_rows, 2)[1] == retain_rows[len(retain_rows) // 2]
    assert evenly_spaced(retain_rows, 10**6) is retain_rows
