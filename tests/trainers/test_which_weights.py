"""What is said of a model is said of the weights that were saved, whatever happened while it trained."""

import json
import re

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from wagle_trl.comparison.runs import load_runs
from wagle_trl.files.run_folder import CARD_FILE, REPORT_FILE

BEST = dict(max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, trajectory_steps=1)
BEST |= dict(load_best_model_at_end=True, metric_for_best_model="eval_retain_loss", learning_rate=1e-2)
KINDS = {"dense": {}, "masked": {"mask_config": None}, "adapters": {"peft_config": LoraConfig(r=2)}}


@pytest.fixture
def losses_are(monkeypatch):
    """Has a trainer find these losses of its retain rows at its evaluations."""

    def patch(trainer, *losses):
        evaluate, values = trainer.evaluation_loop, iter(losses)

        def evaluated(*args, **kwargs):
            output = evaluate(*args, **kwargs)
            output.metrics["eval_retain_loss"] = next(values)
            return output

        monkeypatch.setattr(trainer, "evaluation_loop", evaluated)

    return patch


def forget_probability(trainer, log_probs_of):
    """Of the weights as they are now, from plain logits."""
    model = trainer.model.eval()
    rows = trainer.train_dataset
    return torch.stack([log_probs_of(model, row).mean().exp() for row in rows]).mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_after_loading_the_best_model_all_speak_of_it(
    kind, make_trainer, small_mask, retain_rows, losses_are, log_probs_of, tmp_path, caplog
):
    options = KINDS[kind] | ({"mask_config": small_mask} if kind == "masked" else {})
    trainer = make_trainer(eval_dataset={"retain": retain_rows}, **BEST, **options)
    losses_are(trainer, 1.0, 2.0, 3.0)
    with caplog.at_level("WARNING", "wagle_trl"):
        trainer.train()
    assert "The weights are now those of step 1 of 3, the best by eval_retain_loss" in caplog.text
    trainer.save_model()
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert (report["steps"], report["loaded_step"]) == (3, 1)
    expected = forget_probability(trainer, log_probs_of)
    history = [entry["forget_probability"] for entry in report["log_history"] if "forget_probability" in entry]
    assert len(history) == 5 and history[1] == pytest.approx(history[4]) == pytest.approx(expected, rel=1e-4)
    assert history[3] != pytest.approx(expected, rel=1e-3)  # of the last step
    (run,) = load_runs([tmp_path / "out"])
    numbers = run.numbers()
    assert numbers["final_forget"] == pytest.approx(expected, rel=1e-4)
    assert (numbers["steps"], numbers["saved_step"]) == (3, 1)
    assert run.trajectory["step"] == [0, 1, 2, 3]
    card = (tmp_path / "out" / CARD_FILE).read_text()
    assert "The saved weights are those of step 1, the best of 3 steps." in card
    assert re.search(
        rf"\| rows +\| +step 0 \| +step 1 \|\n.*\n\| forget +\| +{history[0]:.3f} \| +{expected:.3f} \|", card
    )


def test_a_later_call_of_train_starts_from_the_weights_of_the_earlier_one(make_trainer, small_mask, tmp_path):
    options = dict(trajectory_steps=1, save_strategy="steps", save_steps=3, learning_rate=1e-2, mask_config=small_mask)
    trainer = make_trainer(**options)
    trainer.train()
    first = trainer.state.log_history
    trainer.train()
    trainer.save_model()
    other = make_trainer(**options, output_dir=str(tmp_path / "resumed"))
    other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    other.save_model()
    for folder in ("out", "resumed"):
        (run,) = load_runs([tmp_path / folder])
        assert run.history.before["forget"] == first[0]["forget_probability"]
        assert run.history.saved["forget"] == run.trajectory["forget"][-1]
        assert (run.numbers()["steps"], run.trajectory["step"]) == (6, [0, 1, 2, 3, 3, 4, 5, 6])
        card = (tmp_path / folder / CARD_FILE).read_text()
        assert "It was trained in 2 calls of `train`; steps are counted over all of them." in card
        assert re.search(rf"\| step 6 \|\n.*\n\| forget +\| +{first[0]['forget_probability']:.3f} \|", card)
    moved = [entry["selected_moved"] for entry in trainer.state.log_history if "selected_moved" in entry]
    assert moved[0] == pytest.approx(1.0)


def test_weights_that_another_callback_changed_at_the_end_are_measured(make_trainer):
    class Average(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            with torch.no_grad():
                model.lm_head.weight.mul_(0.5)

    trainer = make_trainer(trajectory_steps=3, callbacks=[Average()])
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "forget_probability" in entry]
    assert [entry["step"] for entry in entries] == [0, 3, 3]
    assert entries[1] != entries[2]


@pytest.mark.parametrize("adapters", [True, False])
def test_of_weights_that_were_changed_since_nothing_measured_before_is_said(adapters, make_trainer, tmp_path):
    trainer = make_trainer(trajectory_steps=3, **({"peft_config": LoraConfig(r=2)} if adapters else {}))
    trainer.train()
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).add_(0.5)
    trainer.save_model()
    (run,) = load_runs([tmp_path / "out"])
    assert "final_forget" not in run.numbers()
    card = (tmp_path / "out" / CARD_FILE).read_text()
    assert "were not measured during training" in card and "step 3" not in card


def test_between_two_measurements_a_checkpoint_has_none_of_its_weights(make_trainer, tmp_path):
    make_trainer(trajectory_steps=2, save_strategy="steps", save_steps=1).train()
    finals = [load_runs([tmp_path / "out" / f"checkpoint-{step}"])[0].history.saved for step in (1, 2, 3)]
    assert [bool(final) for final in finals] == [False, True, True]
