"""The dual variable of PDU: one update per optimizer step, by the retain loss of the step."""

import pytest
from transformers import TrainerCallback


def duals(trainer):
    return [entry["dual"] for entry in trainer.state.log_history if "dual" in entry]


@pytest.mark.parametrize("batch, accumulation", [(4, 1), (1, 4)])
def test_it_grows_by_the_mean_retain_loss_of_a_step_after_the_warm_up(batch, accumulation, make_trainer):
    size = dict(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    trainer = make_trainer(
        "pdu", retain_weight=2, dual_warmup_steps=1, dual_learning_rate=0.5, retain_limit=0.1, **size
    )
    trainer.train()
    losses = [entry["retain_loss"] for entry in trainer.state.log_history if "retain_loss" in entry]
    second = 2 + 0.5 * (losses[1] - 0.1)
    assert duals(trainer) == pytest.approx([2, 2, second], rel=1e-5)
    assert trainer.dual == pytest.approx(second + 0.5 * (losses[2] - 0.1), rel=1e-5)


def test_it_is_never_negative(make_trainer):
    trainer = make_trainer("pdu", retain_weight=1, retain_limit=1000)
    trainer.train()
    assert duals(trainer) == [1, 0, 0]


class Log(TrainerCallback):
    """Logs in the middle of a step, which empties the metrics of the trainer."""

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log({"mine": 1.0})


def test_a_callback_that_logs_does_not_change_it(make_trainer):
    plain, log = make_trainer("pdu"), Log()
    plain.train()
    watched = make_trainer("pdu", callbacks=[log])
    log.trainer = watched
    watched.train()
    assert watched.dual == plain.dual


@pytest.mark.parametrize("restore", [True, False])
def test_a_run_that_resumes_has_it_back(restore, make_trainer, tmp_path):
    options = dict(save_strategy="steps", save_steps=2, restore_callback_states_from_checkpoint=restore)
    whole, resumed = make_trainer("pdu", **options), make_trainer("pdu", **options)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.dual == whole.dual > duals(whole)[1]
