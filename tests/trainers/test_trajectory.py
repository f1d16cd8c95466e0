import pytest
import torch

from wagle_trl.trainers.trajectory import _spread


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
    rows = _spread(trainer.train_dataset, 3)
    expected = torch.stack([log_probs_of(trainer.model, row).mean().exp() for row in rows]).mean()
    trainer.train()
    assert len(rows) == 3
    assert probabilities(trainer, "forget")[0] == pytest.approx(expected.item(), rel=1e-5)


def test_named_evaluation_sets_are_watched_too(make_trainer, retain_rows):
    trainer = make_trainer(
        trajectory_steps=10, eval_dataset={"unseen_retain": retain_rows.select(range(2)), "forget": retain_rows}
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"forget_probability", "retain_probability", "unseen_retain_probability"} <= logged.keys()


def test_watching_changes_no_bit_of_the_run(make_trainer, tiny_model, snapshot):
    finals = []
    for steps in (0, 1):
        model = tiny_model(attention_dropout=0.1)
        trainer = make_trainer(model=model, trajectory_steps=steps, seed=3)
        trainer.train()
        finals.append((snapshot(trainer.model), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    (watched, losses), (alone, others) = finals
    assert losses == others
    assert all(torch.equal(watched[name], alone[name]) for name in watched)


def test_zero_steps_watch_nothing(make_trainer):
    trainer = make_trainer(trajectory_steps=0)
    trainer.train()
    assert not probabilities(trainer, "forget")


@pytest.mark.parametrize(("option", "value"), [("trajectory_steps", -1), ("trajectory_rows", 0)])
def test_options_out_of_range_are_refused(make_config, option, value):
    with pytest.raises(ValueError, match=f"{option} must .* got {value}"):
        make_config("npo", **{option: value})


def test_rows_are_evenly_spaced(retain_rows):
    assert _spread(retain_rows, 2)[1] == retain_rows[len(retain_rows) // 2]
    assert _spread(retain_rows, 10**6) is retain_rows
