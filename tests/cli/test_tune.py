import json
import shlex

import pytest
import yaml
from transformers import Trainer

from wagle_trl.cli.main import main


@pytest.fixture
def tune(saved_model, data, quick, tmp_path, capsys):
    """`tune(*options)`: `wagle tune` with at most two candidates, each with one run of two steps."""

    def run(objective="npo", *options):
        own = [
            "--trajectory_steps",
            "1",
            "--tune_learning_rate",
            "1e-2",
            "--retain_weight",
            "1",
            "--tune_retain_weight",
            "1",
        ]
        argv = ["tune", objective, "--model_name_or_path", saved_model, *data, *quick, *own, *options]
        code = main([*argv, "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if code == 0 else captured.err

    return run


@pytest.mark.parametrize(
    ("objective", "command", "options"),
    [
        ("npo", "npo", ["--mask_density", "0.5", "--beta", "0.2", "--hub_token", "secret"]),
        ("graddiff", "graddiff", ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]),
        ("simnpo", "unlearn", ["--mask", "none", "--delta", "0.5"]),
    ],
    ids=["mask", "adapters", "unlearn"],
)
def test_the_best_options_make_the_very_run_that_was_tuned(objective, command, options, tune, tmp_path, capsys):
    code, content = tune(objective, *options, "--unseen_dataset", str(tmp_path / "unseen.jsonl"))
    assert code == 0, content
    assert len(content["runs"]) == 2 and content["steps"] == 4 and content["masks_computed"] == (objective == "npo")
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["trajectory_rows"] == 64 and "hub_token" not in best
    assert best["objective"] == objective
    assert main([command, "--config", content["config"], "--json"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "best" / "wagle_report.json").read_text())
    assert report["options"]["learning_rate"] == content["best"]["learning_rate"]
    columns = content["runs"][0]["trajectory"]
    for name in ("forget", "retain", "unseen_retain"):
        measured = [entry.get(f"{name}_probability") for entry in report["log_history"]]
        assert [value for value in measured if value is not None] == columns[name]


@pytest.fixture(autouse=True)
def unseen(write_jsonl):
    write_jsonl("unseen", [{"prompt": "Question: Where does Zoe live?\nAnswer:", "completion": " Zoe lives in Bonn."}])


def test_an_interrupted_tuning_says_how_it_goes_on_and_does_so(tune, monkeypatch, tmp_path, capsys):
    step, calls = Trainer.training_step, []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args, **options)

    monkeypatch.setattr(Trainer, "training_step", stopped)
    code, error = tune("npo", "--mask", "none", "--output_dir", str(tmp_path / "my runs"))
    *_, line = error.splitlines()
    start, _, command = line.partition(": ")
    assert code == 130 and start == "To go on where it stopped, the same command again"
    words = shlex.split(command)
    assert main(words[1:]) == 0
    *_, cost, written = capsys.readouterr().out.splitlines()
    assert cost.startswith("4 steps in all") and len(calls) == 3 + 2
    best = str(tmp_path / "my runs" / "best.yaml")
    assert shlex.split(written) == ["Written:", "wagle", "unlearn", "--config", best]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--tune_learning_rate", "0"], "tune_learning_rate must be positive and finite, got 0."),
        (["--tune_retain_weight", "-1"], "tune_retain_weight must not be negative or infinite, got -1."),
        (["--tune_mask_score", "best"], "'best'"),
        (["--tune_mask_density", "2"], "mask_density must be in (0, 1], got 2.0."),
        (["--tune_steps", "0"], "tune_steps must be at least 1, got 0."),
        (["--tune_mask_density", "0.1", "--mask", "none"], "need a mask that is computed"),
        (["--trajectory_steps", "0"], "trajectory_steps is 0"),
        (["--resume_from_checkpoint", "true"], "the same wagle tune again goes on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_line(options, problem, tune):
    code, error = tune("npo", *options)
    *_, line = error.splitlines()
    assert code == 2 and line.startswith("wagle tune: error: ") and problem in line


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ([], "the following arguments are required: OBJECTIVE"),
        (["sft"], "There is no objective 'sft'; expected one of npo, graddiff"),
        (["--output_dir", "out", "graddiff"], "'graddiff' comes before the options"),
    ],
)
def test_the_objective_comes_first(argv, problem, capsys):
    assert main(["tune", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
