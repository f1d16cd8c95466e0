"""Runs that end when they are done. What is measured is given by the tests, but for one run that forgets."""

import json

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from wagle_trl import NPOTrainer
from wagle_trl.files.run_folder import REPORT_FILE
from wagle_trl.unlearning.trajectory import Trajectory

STOP = dict(trajectory_steps=1, max_steps=6, stop_forget_probability=0.1)
CHECKPOINTS = dict(save_strategy="steps", save_steps=2)
BEST = dict(load_best_model_at_end=True, metric_for_best_model="kept", eval_strategy="steps", save_strategy="steps")
DONE_AT_3 = ([0.9, 0.5, 0.05, 0.05, 0.2, 0.01, 0.01], [1.0, 0.9, 0.7, 0.98, 0.6, 1.0, 1.0])


@pytest.fixture
def measured(monkeypatch):
    """`measured(forget, retain)`: what every trainer measures at steps 0, 1, 2, ..., the last value for later ones."""

    def script(forget, retain):
        def measure(trajectory):
            step = trajectory.trainer.state.global_step
            if trajectory.trainer.loaded_step is not None:
                step = trajectory.trainer.loaded_step
            values = {"forget": forget, "retain": retain, "unseen_retain": [0.0]}
            return {f"{name}_probability": listed[min(step, len(listed) - 1)] for name, listed in values.items()}

        monkeypatch.setattr(Trajectory, "measure", measure)

    return script


def train(trainer, *args):
    trainer.train(*args)
    return trainer.state.global_step


def test_a_run_ends_when_the_forget_rows_are_forgotten_and_the_retain_rows_are_back(measured, make_trainer):
    measured(*DONE_AT_3)
    assert train(make_trainer(**STOP)) == 3
    assert train(make_trainer(**STOP, stop_retain_probability=0.7)) == 2
    assert train(make_trainer(**STOP | {"stop_forget_probability": 0.02})) == 5
    assert train(make_trainer(**STOP | {"trajectory_steps": 2})) == 6


def test_a_run_that_forgets_ends_early_and_says_so(make_trainer, learned, retain_rows, forget_rows, tmp_path, caplog):
    options = dict(trajectory_steps=1, max_steps=30, learning_rate=5e-3, stop_forget_probability=0.3)
    trainer = make_trainer(
        model=learned, train_dataset=retain_rows, retain_dataset=forget_rows, stop_retain_probability=0.0, **options
    )
    with caplog.at_level("WARNING", "wagle_trl"):
        steps = train(trainer)
    history = trainer.history.trajectory["forget"]
    assert 0 < steps < 30 and history[0] > 0.9 and history[-1] <= 0.3 < min(history[:-1])
    assert trainer.verdict.endswith(f"done at step {steps}") and f"{trainer.verdict}." in caplog.messages
    trainer.save_model()
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["verdict"] == trainer.verdict


def test_by_default_every_step_is_taken_and_the_verdict_assumes_a_level(measured, make_trainer):
    measured(*DONE_AT_3)
    for options in ({}, {"stop_forget_probability": 0}, {"stop_forget_probability": 0.0, "trajectory_steps": 0}):
        trainer = make_trainer(**{"trajectory_steps": 1, "max_steps": 6} | options)
        assert train(trainer) == 6
    assert make_trainer().verdict is None
    trainer = make_trainer(trajectory_steps=1, max_steps=6)
    trainer.train()
    assert trainer.verdict == "forget 0.9 -> 0.01, retain 1 -> 1: done at step 6, and first at step 3"


def test_a_run_ends_when_nothing_moves(measured, make_trainer):
    measured([0.9, 0.5, 0.5], [1.0])
    trainer = make_trainer(**STOP, stop_patience=2)
    assert train(trainer) == 3
    assert "forget no longer falls, and nothing moved for 2 measurements" in trainer.verdict
    measured([0.9, 0.05], [1.0, 0.5, 0.6, 0.6])
    trainer = make_trainer(**STOP, stop_patience=2)
    assert train(trainer) == 4
    assert "retain is at 0.6 of 1, and nothing moved for 2 measurements: raise retain_weight" in trainer.verdict


def test_a_later_call_of_train_has_its_own_patience_and_the_start_of_the_first(measured, make_trainer):
    measured([0.9, 0.5], [1.0])
    trainer = make_trainer(**STOP, stop_patience=2)
    assert [train(trainer), train(trainer)] == [3, 3]
    measured([0.5, 0.05], [0.5])
    assert train(trainer) == 3  # `retain` was 1 before unlearning


def test_a_run_that_begins_below_the_level_says_so_at_once_and_takes_every_step(measured, make_trainer, caplog):
    measured([0.05, 0.01], [1.0])
    trainer = make_trainer(**STOP, stop_patience=1)
    with caplog.at_level("WARNING", "wagle_trl"):
        assert train(trainer) == 6
    assert "have the answer probability 0.05 before the first step: the model does not know them" in caplog.text
    assert "forget was below 0.1 from the start" in trainer.verdict


def test_rows_that_are_not_trained_on_do_not_decide(make_trainer, learned, retain_rows, forget_rows):
    options = dict(trajectory_steps=1, max_steps=30, learning_rate=5e-3, stop_forget_probability=0.3)
    sets = {"retain": retain_rows, "forget": forget_rows, "unseen_retain": retain_rows}  # these names, other rows
    trainer = make_trainer(
        model=learned,
        train_dataset=retain_rows,
        retain_dataset=forget_rows,
        eval_dataset=sets,
        stop_retain_probability=0.0,
        **options,
    )
    assert 0 < train(trainer) < 30


@pytest.mark.parametrize("patience", [1, 10])
def test_a_resumed_run_ends_where_one_that_was_not_interrupted_ends(patience, measured, make_trainer, tmp_path):
    measured(*(DONE_AT_3 if patience == 10 else ([0.9, 0.5, 0.3, 0.3], [1.0])))
    options = STOP | dict(save_strategy="steps", save_steps=1, stop_patience=patience)
    whole = make_trainer(**options)
    assert train(whole) == 3
    for step in (1, 2, 3):
        resumed = make_trainer(**options)
        assert train(resumed, str(tmp_path / "out" / f"checkpoint-{step}")) == 3
        assert resumed.history.trajectory == whole.history.trajectory
        assert all(
            (value == whole.model.state_dict()[name]).all() for name, value in resumed.model.state_dict().items()
        )


def test_resuming_a_run_that_had_ended_with_a_deeper_goal_goes_on(measured, make_trainer, tmp_path):
    measured(*DONE_AT_3)
    make_trainer(**STOP, **CHECKPOINTS).train()
    deeper = make_trainer(**STOP | {"stop_forget_probability": 0.02}, **CHECKPOINTS)
    assert train(deeper, str(tmp_path / "out" / "checkpoint-3")) == 5


def test_a_run_that_ends_saves_and_evaluates_as_at_the_last_step(measured, make_trainer, retain_rows, tmp_path):
    measured(*DONE_AT_3)
    trainer = make_trainer(
        **STOP, **CHECKPOINTS, eval_strategy="steps", eval_steps=2, eval_dataset={"unseen_retain": retain_rows}
    )
    assert train(trainer) == 3
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    assert [e["step"] for e in trainer.state.log_history if "eval_unseen_retain_loss" in e] == [2, 3]


def test_a_run_without_checkpoints_saves_none_when_it_ends(measured, make_trainer, tmp_path):
    measured(*DONE_AT_3)
    make_trainer(**STOP).train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


# The best model


@pytest.mark.parametrize("evaluated", [True, False])
def test_kept_chooses_the_step_that_kept_most_among_those_that_forgot(evaluated, measured, make_trainer, retain_rows):
    measured([0.9, 0.5, 0.09, 0.08, 0.2, 0.0], [1.0, 0.99, 0.7, 0.8, 0.95, 0.75])
    rows = {"eval_dataset": {"unseen_retain": retain_rows}} if evaluated else {}
    trainer = make_trainer(max_steps=5, trajectory_steps=2, **BEST, eval_steps=1, save_steps=1, **rows)
    trainer.train()
    assert (trainer.loaded_step, trainer.state.best_metric) == (3, 0.8)
    rates = [entry["eval_kept"] for entry in trainer.state.log_history if "eval_kept" in entry]
    assert rates == pytest.approx([-0.4, 0.7, 0.8, -0.1, 0.75])
    assert trainer.verdict == (
        "forget 0.9 -> 0.08, retain 1 -> 0.8 (step 3, loaded as the best): forgotten, but retain is at 0.8 of 1: "
        "raise retain_weight or max_steps"
    )


def test_without_a_step_that_forgot_kept_chooses_the_one_with_least_left(measured, make_trainer):
    measured([0.9, 0.5, 0.3, 0.6], [1.0, 1.0, 0.5, 1.0])
    trainer = make_trainer(trajectory_steps=1, **BEST, eval_steps=1, save_steps=1)
    trainer.train()
    assert trainer.loaded_step == 2


def test_kept_and_the_end_of_a_run_go_together(measured, make_trainer):
    measured(*DONE_AT_3)
    trainer = make_trainer(**STOP, **BEST, eval_steps=2, save_steps=2)
    assert train(trainer) == 3
    assert trainer.loaded_step is None and trainer.state.best_metric == 0.98
    assert trainer.verdict.endswith("done at step 3")


def test_kept_is_of_the_rows_that_are_measured_and_changes_no_bit_of_the_run(make_trainer, snapshot, retain_rows):
    finals = []
    for options in ({}, BEST | {"eval_steps": 1, "save_steps": 1, "load_best_model_at_end": False}):
        trainer = make_trainer(trajectory_steps=1, **options)
        trainer.train()
        finals.append((snapshot(trainer.model), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    assert finals[0][1] == finals[1][1]
    assert all((value == finals[1][0][name]).all() for name, value in finals[0][0].items())
    last = trainer.history.saved
    assert last["forget"] < 0.1  # a model that knows nothing
    assert trainer.evaluate()["eval_kept"] == last["retain"]
    assert "eval_kept" not in trainer.evaluate(retain_rows)


def test_a_callback_that_the_user_gave_sees_kept_where_no_rows_are_evaluated(measured, make_trainer):
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics["eval_kept"])

    measured(*DONE_AT_3)
    make_trainer(max_steps=2, trajectory_steps=1, **BEST, eval_steps=1, save_steps=1, callbacks=[Watch()]).train()
    assert seen == pytest.approx([-0.4, 0.7])


@pytest.mark.parametrize("evaluated", [True, False])
def test_early_stopping_goes_by_kept(evaluated, measured, make_trainer, retain_rows):
    measured([0.9, 0.05], [1.0, 0.9, 0.8, 0.7, 0.6])
    rows = {"eval_dataset": {"unseen_retain": retain_rows}} if evaluated else {}
    patient = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = make_trainer(
        max_steps=4, trajectory_steps=1, **BEST, eval_steps=1, save_steps=1, callbacks=[patient], **rows
    )
    assert train(trainer) == 3 and trainer.loaded_step == 1


def test_what_cannot_work_is_refused_before_the_model_is_read(make_config, forget_rows, retain_rows):
    for options, name in (
        ({"stop_forget_probability": 0.1}, "stop_forget_probability"),
        (BEST, "metric_for_best_model 'kept'"),
    ):
        with pytest.raises(ValueError, match=f"{name} needs measurements, and trajectory_steps is 0; raise"):
            NPOTrainer("no-such", make_config("npo", **options), train_dataset=forget_rows, retain_dataset=retain_rows)


def test_the_worst_is_not_taken_for_the_best(make_trainer):
    with pytest.raises(ValueError, match="'kept' is greater for better models; leave greater_is_better unset"):
        make_trainer(trajectory_steps=1, **BEST, greater_is_better=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stop_forget_probability", 1.0),
        ("stop_forget_probability", -0.1),
        ("stop_retain_probability", 1.1),
        ("stop_retain_probability", float("nan")),
        ("stop_patience", 0),
    ],
)
def test_options_out_of_range_are_refused(make_config, option, value):
    with pytest.raises(ValueError, match=f"{option} must be .* got {value}"):
        make_config("npo", trajectory_steps=1, **{option: value})
