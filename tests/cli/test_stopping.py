"""Unlearning on the command line ends when it is done, and says what came of it. What is measured is given."""

import json

import pytest

from wagle_trl.cli.main import main
from wagle_trl.cli.train import parse_options
from wagle_trl.unlearning.trajectory import Trajectory

STEPS = ["--max_steps", "4", "--trajectory_steps", "1", "--mask", "none"]


@pytest.fixture
def unlearn(saved_model, data, quick, tmp_path, capsys, caplog, monkeypatch):
    """`unlearn(forget, retain, *options)`: runs with these measurements at each step; exit code, stdout, log, report."""

    def run(forget, retain, *options, command="npo"):
        def measure(trajectory):
            step = trajectory.trainer.state.global_step
            return {"forget_probability": forget[step], "retain_probability": retain[step]}

        monkeypatch.setattr(Trajectory, "measure", measure)
        with caplog.at_level("WARNING", "wagle_trl"):
            code = main([command, "--model_name_or_path", saved_model, *data, *quick, *STEPS, *options])
        return (
            code,
            capsys.readouterr().out,
            caplog.messages,
            json.loads((tmp_path / "out" / "wagle_report.json").read_text()),
        )

    return run


@pytest.mark.parametrize("command", ["npo", "graddiff"])
def test_a_run_ends_when_it_is_done_and_its_last_line_says_so(command, unlearn, tmp_path):
    code, out, log, report = unlearn([0.9, 0.5, 0.1], [1.0, 0.8, 0.98], command=command)
    line = "forget 0.9 -> 0.1, retain 1 -> 0.98: done at step 2"
    assert (code, report["steps"], report["verdict"]) == (0, 2, line)
    assert report["options"]["stop_forget_probability"] == 0.1
    assert out.splitlines()[-1] == f"{line}." and f"{line}." in log
    assert main(["report", str(tmp_path / "out"), "--output_dir", str(tmp_path / "report")]) == 0
    assert f"- out: Verdict: {line}." in (tmp_path / "report" / "report.md").read_text()


def test_zero_takes_every_step(unlearn):
    code, out, _, report = unlearn(
        [0.9, 0.05, 0.05, 0.05, 0.05], [1.0] * 5, "--stop_forget_probability", "0", "--json"
    )
    assert (code, report["steps"]) == (0, 4)
    assert json.loads(out)["verdict"] == "forget 0.9 -> 0.05, retain 1 -> 1: done at step 4, and first at step 1"


def test_a_run_that_forgot_nothing_exits_well_and_warns(unlearn):
    code, out, log, _ = unlearn([0.9792, 0.9791, 0.9791, 0.9791, 0.9791], [1.0] * 5, "--json")
    line = "forget 0.979 -> 0.979, retain 1 -> 1: nothing was forgotten: raise learning_rate or max_steps"
    assert code == 0 and json.loads(out)["verdict"] == line and f"{line}." in log


def test_patience_and_levels_are_options(unlearn):
    _, _, _, report = unlearn([0.9] * 5, [1.0] * 5, "--stop_patience", "2")
    assert report["steps"] == 2
    levels = ["--stop_forget_probability", "0.5", "--stop_retain_probability", "0.8"]
    _, _, _, report = unlearn([0.9, 0.5, 0.1], [1.0, 0.8, 0.96], *levels)
    assert report["steps"] == 1


def test_the_best_by_kept_is_saved_and_spoken_of(unlearn):
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "kept", "--stop_forget_probability", "0"]
    best += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    code, out, log, report = unlearn([0.9, 0.08, 0.05, 0.2, 0.01], [1.0, 0.7, 0.9, 0.99, 0.8], *best, "--json")
    assert (code, report["loaded_step"]) == (0, 2)
    assert "The weights are now those of step 2 of 4, the best by kept" in " ".join(log)
    assert "(step 2, loaded as the best)" in json.loads(out)["verdict"]


def stop_of(*argv, command="npo"):
    return parse_options([*argv, "--output_dir", "out"], command, command)[3].stop_forget_probability


def test_without_measurements_the_default_is_off_and_a_choice_is_refused(saved_model, data, quick, tmp_path, capsys):
    assert stop_of() == stop_of(command="graddiff") == 0.1
    assert stop_of("--trajectory_steps", "0") is None
    (tmp_path / "off.yaml").write_text("stop_forget_probability: null\n")
    assert stop_of("--config", str(tmp_path / "off.yaml")) is None
    options = ["--trajectory_steps", "0", "--stop_forget_probability", "0.05"]
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick, *options]) == 2
    assert "stop_forget_probability needs measurements, and trajectory_steps is 0" in capsys.readouterr().err


def test_fine_tuning_has_no_such_option(capsys):
    assert main(["sft", "--stop_forget_probability", "0.1"]) == 2
    assert "there is no option --stop_forget_probability" in capsys.readouterr().err
