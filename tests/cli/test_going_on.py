import json
import shlex

import pytest
from transformers import Trainer

from wagle_trl.cli.going_on import command_line
from wagle_trl.cli.main import main


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(step, error)`: the step raises the error, once."""

    def stop(number, error):
        step, errors, calls = Trainer.training_step, [error], []

        def stopped(*args, **options):
            calls.append(args)
            if len(calls) == number and errors:
                raise errors.pop()
            return step(*args, **options)

        monkeypatch.setattr(Trainer, "training_step", stopped)

    return stop


SAVING = ["--save_strategy", "steps", "--save_steps", "1"]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("a GPU is gone"), 70), (OSError("no room"), 2)]
)
def test_an_interrupted_training_ends_with_the_command_that_goes_on(
    error, code, saved_model, data, quick, stop_at, capsys
):
    stop_at(2, error)
    argv = ["npo", "--model_name_or_path", saved_model, *data, *quick, *SAVING, "--resume_from_checkpoint=false"]
    assert main(argv) == code
    *_, line = capsys.readouterr().err.splitlines()
    words = shlex.split(line.removeprefix("To go on: "))
    assert words == ["wagle", *argv[:-1], "--resume_from_checkpoint", "true"]
    assert main([*words[1:], "--json"]) == 0
    assert "loss" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "--save_strategy is no; steps or epoch save checkpoints"),
        (
            ["--save_strategy", "steps", "--save_steps", "9"],
            "no checkpoint was due yet (--save_strategy steps, --save_steps 9)",
        ),
        ([*SAVING, "--save_only_model"], "--save_only_model leaves out the state of the optimizer"),
    ],
)
def test_or_says_why_nothing_was_saved(options, reason, saved_model, data, quick, stop_at, capsys):
    stop_at(2, KeyboardInterrupt())
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick, *options]) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"Nothing was saved to go on from: {reason}. The same command starts again."


def test_checkpoints_of_another_run_are_not_gone_on_from(saved_model, data, quick, stop_at, capsys):
    argv = ["npo", "--model_name_or_path", saved_model, *data, *quick]
    assert main([*argv, *SAVING]) == 0
    stop_at(2, KeyboardInterrupt())
    assert main([*argv, "--mask_density", "0.5"]) == 130
    assert "Nothing was saved to go on from" in capsys.readouterr().err.splitlines()[-1]


def test_the_command_that_goes_on_names_the_objective(saved_model, data, quick, stop_at, capsys):
    stop_at(2, KeyboardInterrupt())
    argv = ["unlearn", "--objective", "simnpo", "--model_name_or_path", saved_model, *data, *quick, *SAVING]
    assert main(argv) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert shlex.split(line.removeprefix("To go on: ")) == ["wagle", *argv, "--resume_from_checkpoint", "true"]


def test_an_error_before_the_first_step_is_one_line(saved_model, data, quick, stop_at, capsys):
    stop_at(1, ValueError("bad rows"))
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "wagle npo: error: bad rows"


def test_an_interrupted_evaluation_goes_on_with_the_same_command(saved_model, data, tmp_path, interrupt_at, capsys):
    interrupt_at(2)
    argv = [
        "eval",
        "--model_name_or_path",
        saved_model,
        *data,
        "--output_dir",
        str(tmp_path / "out"),
        "--generate",
        "false",
    ]
    argv += ["--batch_size", "2"]
    assert main(argv) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"To go on where it stopped, the same command again: {shlex.join(['wagle', *argv])}"
    assert main(argv) == 0


def test_a_command_to_copy_holds_no_token():
    argv = ["--hub_token", "secret", "--hub-token=secret", "--output_dir", "a b"]
    assert command_line("npo", argv) == "wagle npo --output_dir 'a b' --hub_token ..."
