import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerState

from wagle_trl import NPOTrainer
from wagle_trl.trainers.log_lines import PrintedLines, ProgressLines, log_line

LOGS = {
    "of training": (
        {
            "loss": -0.524,
            "grad_norm": 2.1,
            "learning_rate": 1e-5,
            "selected_moved": 0.032,
            "forget_loss": 0.41,
            "epoch": 2.0,
        },
        "step 40/120  loss -0.524  forget_loss 0.41  lr 1e-05  grad 2.1  moved 3.2%",
    ),
    "of answer probabilities": (
        {"forget_probability": 0.41, "retain_probability": 0.97, "epoch": 2.0},
        "step 40/120  answer probability  forget 0.998 -> 0.41  retain 0.97",
    ),
    "of the best model": (
        {"forget_probability": 0.41, "retain_probability": 0.97, "loaded_step": 20},
        "step 20/120  answer probability  forget 0.998 -> 0.41  retain 0.97",
    ),
    "of an evaluation": (
        {
            "eval_forget_loss": 1.5,
            "eval_runtime": 3.25,
            "eval_samples_per_second": 9.0,
            "eval_forget_num_tokens": 9.0,
            "epoch": 2.0,
        },
        "step 40/120  evaluation  forget_loss 1.5  runtime 3.25",
    ),
    "at the end": (
        {"train_runtime": 12.5, "train_steps_per_second": 1.0, "total_flos": 3.0, "train_loss": 0.1},
        "step 40/120  train_runtime 12.5  train_loss 0.1",
    ),
    "of anything": ({"mode": "a\x1b[2Jb", "count": 3}, r"step 40/120  mode a\x1b[2Jb  count 3"),
}


@pytest.mark.parametrize(("logs", "line"), LOGS.values(), ids=LOGS)
def test_a_measurement_is_one_line(logs, line):
    history = [{"forget_probability": 0.998, "retain_probability": 0.97, "step": 0}, logs | {"step": 40}]
    assert log_line(logs, TrainerState(global_step=40, max_steps=120, log_history=history)) == line


@pytest.fixture
def train(tiny_model, tiny_tokenizer, forget_rows, retain_rows, tmp_path):
    def run(callbacks=None, **options):
        args = NPOTrainer.config_class(
            str(tmp_path), max_steps=2, logging_steps=1, report_to="none", save_strategy="no", **options
        )
        rows = {"train_dataset": forget_rows, "retain_dataset": retain_rows}
        trainer = NPOTrainer(tiny_model(), args, **rows, processing_class=tiny_tokenizer, callbacks=callbacks)
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_trainers_print_lines_and_no_dicts(train, disable_tqdm, capsys):
    history = train(disable_tqdm=disable_tqdm).state.log_history
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert len(lines) == len(history) and "{" not in out
    assert lines[0].startswith("step 0/2  answer probability  forget ") and lines[-2].startswith("step 2/2  loss ")


class Mine(ProgressCallback):
    pass


@pytest.mark.parametrize("callback", [Mine, PrinterCallback()])
def test_a_callback_of_the_user_stays_the_one_that_prints(callback, train, capsys):
    callbacks = train([callback]).callback_handler.callbacks
    assert not any(isinstance(one, (ProgressLines, PrintedLines)) for one in callbacks)
    assert "{'loss'" in capsys.readouterr().out
