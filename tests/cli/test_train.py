import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wagle_trl import WeightMask
from wagle_trl.cli.arguments import FineTuningData, UnlearningData
from wagle_trl.cli.main import main
from wagle_trl.cli.objectives import ObjectiveChoice, chosen_objective
from wagle_trl.cli.parser import parse
from wagle_trl.cli.train import TRACKERS, option_types
from wagle_trl.data.alternates import load_refusals
from wagle_trl.masks.info import MaskInfo

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def run_json(capsys, *argv):
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize("command", ["npo", "graddiff"])
def test_unlearning_writes_model_mask_plot_and_report_and_moves_selected_weights_only(
    command, saved_model, data, quick, tmp_path, capsys
):
    content = run_json(capsys, command, "--model_name_or_path", saved_model, *data, *quick, "--weight_decay", "0.1")
    out = tmp_path / "out"
    assert content["output_dir"] == str(out) and "forget_loss" in content and "selected_moved" in content
    for name in ("model.safetensors", "wagle_mask.safetensors", "wagle_mask.png", "wagle_report.json", "README.md"):
        assert (out / name).stat().st_size > 0
    before, after, mask = weights(saved_model), weights(out), WeightMask.load(out)
    assert {value.dtype for value in after.values()} == {torch.float32}  # as saved
    assert mask.num_selected == round(0.05 * mask.numel) == content["num_selected"]
    moved = 0
    for name, old in before.items():
        changed = after[name] != old
        moved += int(changed.sum())
        assert not (changed & ~mask.dense(name)).any() if name in mask.bits else not changed.any()
    assert moved > 0


@pytest.mark.parametrize(
    ("saved", "given", "trained"),
    [
        (torch.bfloat16, [], torch.bfloat16),
        (torch.float16, [], torch.bfloat16),
        (torch.float32, ["--dtype", "bfloat16"], torch.bfloat16),
    ],
    ids=["as saved", "fp16", "as asked"],
)
def test_a_mask_trains_in_the_dtype_of_the_saved_weights(
    saved, given, trained, tiny_model, saved_model, data, quick, tmp_path, capsys, caplog
):
    tiny_model(dtype=saved).save_pretrained(saved_model)
    random = ["--mask_score", "random", "--trajectory_steps", "0"]
    run_json(capsys, "npo", "--model_name_or_path", saved_model, *data, *quick, *given, *random)
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {trained}
    assert sum("is saved in float16" in message for message in caplog.messages) == (saved == torch.float16)


def test_a_yaml_file_sets_options_and_the_command_line_wins(saved_model, data, quick, tmp_path, capsys):
    config = tmp_path / "npo.yaml"
    config.write_text("mask_density: 0.5\nbeta: 0.2\nmask_score: gradient\n")
    run_json(
        capsys, "npo", "--config", str(config), "--model_name_or_path", saved_model, *data, *quick, "--beta", "0.3"
    )
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["options"]["beta"] == 0.3
    assert report["mask"]["info"]["score"] == "gradient"
    assert report["mask"]["density"] == pytest.approx(0.5, abs=1e-3)


def test_a_saved_mask_is_used_as_it_is(saved_model, data, quick, tmp_path, capsys):
    folder = str(tmp_path / "mask")
    run_json(
        capsys,
        "mask",
        "--model_name_or_path",
        saved_model,
        *data,
        *quick,
        "--output_dir",
        folder,
        "--mask_score",
        "wagle",
    )
    run_json(capsys, "npo", "--model_name_or_path", saved_model, *data, *quick, "--mask", folder)
    assert WeightMask.load(tmp_path / "out") == WeightMask.load(folder)


def test_a_run_ends_well_whatever_its_mask_calls_itself(saved_model, data, quick, tmp_path, capsys):
    hostile = "[/x]$\\frac$\x1b[2J\u202e"
    masks = {name: torch.rand(value.shape) < 0.1 for name, value in weights(saved_model).items() if "mlp" in name}
    WeightMask.from_dense(masks, MaskInfo(score=hostile, base_model=hostile)).save(tmp_path)
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick, "--mask", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    shown = captured.out + captured.err + (tmp_path / "out" / "README.md").read_text()
    assert r"[/x]$\frac$\x1b[2J\u202e" in captured.out
    assert "\x1b[2J" not in shown and "\u202e" not in shown


def test_mask_none_trains_all_weights(saved_model, data, quick, tmp_path, capsys):
    run_json(capsys, "npo", "--model_name_or_path", saved_model, *data, *quick, "--mask", "none")
    assert not (tmp_path / "out" / "wagle_mask.safetensors").exists()
    before, after = weights(saved_model), weights(tmp_path / "out")
    assert all((after[name] != old).any() for name, old in before.items())


def test_sft_trains_on_dataset_name(saved_model, data, quick, tmp_path, capsys):
    options = ["--dataset_name", data[1], "--mask_score", "gradient"]
    content = run_json(capsys, "sft", "--model_name_or_path", saved_model, *options, *quick)
    assert "mean_token_accuracy" in content
    assert (tmp_path / "out" / "wagle_mask.safetensors").exists()


def test_sft_without_dataset_name_trains_on_the_retain_rows_the_weights_of_the_forget_rows(
    saved_model, data, quick, tmp_path, capsys
):
    assert "loss" in run_json(capsys, "sft", "--model_name_or_path", saved_model, *data, *quick)
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["num_train_rows"] == report["num_retain_rows"]
    run_json(
        capsys, "mask", "--model_name_or_path", saved_model, *data, *quick, "--output_dir", str(tmp_path / "mask")
    )
    assert WeightMask.load(tmp_path / "out") == WeightMask.load(tmp_path / "mask")


def test_question_and_answer_rows_are_understood(saved_model, quick, write_jsonl, capsys):
    rows = [{"question": f"what is {i}", "answer": f"it is {i}"} for i in range(8)]
    files = ["--forget_dataset", write_jsonl("f", rows[:2]), "--retain_dataset", write_jsonl("r", rows[2:])]
    assert "retain_loss" in run_json(capsys, "npo", "--model_name_or_path", saved_model, *files, *quick)


def test_evaluation_while_training_names_both_sets(saved_model, data, quick, capsys):
    options = ["--eval_strategy", "steps", "--eval_steps", "1"]
    content = run_json(capsys, "npo", "--model_name_or_path", saved_model, *data, *quick, *options)
    assert {"eval_forget_loss", "eval_retain_loss", "eval_forget_mean_token_accuracy"} <= set(content)


def test_unseen_rows_are_watched_beside_forget_and_retain_rows(
    saved_model, data, quick, write_jsonl, tmp_path, capsys
):
    unseen = str(write_jsonl("unseen.jsonl", [{"question": "Who plays?", "answer": "Nobody plays."}]))
    run_json(capsys, "npo", "--model_name_or_path", saved_model, *data, *quick, "--unseen_dataset", unseen)
    history = json.loads((tmp_path / "out" / "wagle_report.json").read_text())["log_history"]
    watched = {"forget_probability", "retain_probability", "unseen_retain_probability"}
    assert all(0 < entry[key] < 1 for entry in history if "forget_probability" in entry for key in watched)
    assert watched <= history[0].keys()


def test_without_json_tables_are_printed(saved_model, data, quick, capsys):
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick]) == 0
    out = capsys.readouterr().out
    assert "Jaccard overlap" in out and "Selected share by module" in out


def test_a_mask_of_other_weights_is_refused_before_training(saved_model, data, quick, tmp_path, tiny_model, capsys):
    mask = WeightMask.from_dense(
        {name: torch.ones_like(p, dtype=torch.bool) for name, p in tiny_model().named_parameters()},
        MaskInfo(fingerprint="0" * 16),
    )
    mask.save(tmp_path / "other")
    code = main(["npo", "--model_name_or_path", saved_model, *data, *quick, "--mask", str(tmp_path / "other")])
    assert code == 2
    assert "The mask was made for other weights" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_resume_from_the_last_checkpoint(saved_model, data, quick, tmp_path, capsys):
    options = [
        "npo",
        "--model_name_or_path",
        saved_model,
        *data,
        *quick,
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    ]
    run_json(capsys, *options)
    whole = weights(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-2").rename(tmp_path / "gone")
    run_json(capsys, *options, "--resume_from_checkpoint", "true")
    resumed = weights(tmp_path / "out")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_the_extra_that_brings_it(name, monkeypatch, capsys):
    monkeypatch.setattr("wagle_trl.cli.train.find_spec", lambda module: None)
    code = main(["npo", "--model_name_or_path", "no-such-model", "--output_dir", "out", "--report_to", name])
    assert code == 2
    assert f"{name} is not installed; `pip install 'wagle-trl[{name}]'`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "report_to: there is no tracker 'tensorbord'; expected one of none, all, "),
        ("clearml", "clearml is not installed"),
        ("mlflow", "mlflow is not installed"),
    ],
)
def test_other_trackers_are_refused_before_any_work(name, message, capsys):
    assert main(["npo", "--model_name_or_path", "no-such-model", "--output_dir", "out", "--report_to", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "no-such-model" not in line


@pytest.mark.parametrize("given", ["forget", "retain"])
def test_the_rows_that_are_missing_are_named(given, saved_model, data, quick, capsys):
    rows = data[:2] if given == "forget" else data[2:]
    assert main(["npo", "--model_name_or_path", saved_model, *rows, *quick]) == 2
    missing = "retain" if given == "forget" else "forget"
    assert f"No data: give --{missing}_dataset, or --tofu_split forget10" in capsys.readouterr().err


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_has_options_that_its_command_knows(path):
    _, command, *argv = path.read_text().splitlines()[0].removeprefix("# ").split()
    assert argv == ["--config", f"examples/{path.name}"]
    method = "sft" if command == "sft" else chosen_objective(["--config", str(path)]) or command
    types = [*option_types("npo" if method == "mask" else method), ObjectiveChoice]
    *_, options, _, _ = parse(types, ["--config", str(path)], command)
    refusals = getattr(options, "refusals", None)
    assert refusals is None or len(load_refusals(str(path.parents[1] / refusals))) > 1


LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]


def test_adapters_train_without_a_mask_unless_it_is_given_by_its_path(saved_model, data, quick, tmp_path, capsys):
    options = ["--model_name_or_path", saved_model, *data, *quick, *LORA]
    run_json(capsys, "npo", *options)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "wagle_mask.safetensors").exists()
    run_json(capsys, "mask", *options, "--output_dir", str(tmp_path / "mask"), "--mask_density", "0.5")
    run_json(capsys, "npo", *options, "--mask", str(tmp_path / "mask"))
    mask = WeightMask.load(tmp_path / "out")
    assert mask == WeightMask.load(tmp_path / "mask") and all("lora" in name for name in mask.bits)


@pytest.mark.parametrize("options", [UnlearningData, FineTuningData])
@pytest.mark.parametrize("rows", ["forget_dataset", "retain_dataset"])
@pytest.mark.parametrize("tofu", ["tofu_split", "tofu_dir"])
def test_rows_of_ones_own_do_not_go_with_tofu(options, rows, tofu):
    with pytest.raises(ValueError, match=f"Give either --{rows} or --{tofu}, not both."):
        options(**{rows: "rows.jsonl", tofu: "forget10"}).rows()


@pytest.mark.parametrize("options", [{"dataset_name": "any"}, {"unseen_dataset": "any"}])
def test_rows_that_tofu_does_not_bring_go_with_it(options, tmp_path, write_jsonl):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(41)]
    write_jsonl("full", rows)
    forget, retain = FineTuningData(tofu_split="forget01", tofu_dir=str(tmp_path), **options).rows()
    assert (len(forget), len(retain)) == (40, 1)


def test_a_run_of_local_files_asks_the_hub_for_nothing_and_tells_it_nothing(saved_model, data, quick, hub):
    """TRL would tell it of every trainer that is made."""
    environment = os.environ | hub.environment
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "CI"):
        environment.pop(variable, None)
    command = [sys.executable, "-c", "import sys; from wagle_trl.cli.main import main; sys.exit(main())"]
    command += ["npo", "--model_name_or_path", saved_model, *data, *quick]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []


def test_a_name_in_a_model_that_commands_the_terminal_is_refused_before_it_is_shown(
    saved_model, data, quick, tmp_path, capfd
):
    weights = load_file(Path(saved_model, "model.safetensors"))
    save_file(weights | {"\x1b[31mEVIL": torch.zeros(1)}, Path(saved_model, "model.safetensors"), {"format": "pt"})
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick]) == 2
    shown = "".join(capfd.readouterr())
    assert (
        "model.safetensors: '\\x1b[31mEVIL' is not a valid name of a tensor" in shown and "\x1b[31mEVIL" not in shown
    )


def test_options_of_a_mask_that_is_not_computed_are_named(data, quick, saved_model, caplog):
    options = [*data, *quick, "--model_name_or_path", saved_model, "--trajectory_steps", "0", "--mask", "none"]
    with caplog.at_level("WARNING", "wagle_trl"):
        assert main(["npo", *options, "--mask_density", "0.2", "--mask_score", "snip"]) == 0
    assert "these options do nothing: mask_score, mask_density" in caplog.text


@pytest.mark.parametrize(("place", "name"), [(1, "forget"), (3, "retain")])
def test_rows_that_count_as_unseen_must_not_be_trained_on(place, name, data, quick, saved_model, capsys):
    options = [*data, "--unseen_dataset", data[place], *quick, "--model_name_or_path", saved_model]
    assert main(["npo", *options]) == 2
    assert f"rows are in both the {name} and the unseen set" in capsys.readouterr().err


def test_plain_text_may_stand_in_another_column(saved_model, write_jsonl, quick, tmp_path):
    files = [write_jsonl(who, [{"story": f"{who} lives in Oslo."}]) for who in ("Ada", "Bo")]
    data = ["--forget_dataset", files[0], "--retain_dataset", files[1]]
    named = ["--model_name_or_path", saved_model, "--trajectory_steps", "0", "--dataset_text_field", "story"]
    assert main(["npo", *named, *data, *quick, "--mask_score", "random"]) == 0
    out = ["--model_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "eval")]
    assert main(["eval", *out, *data, "--generate", "false"]) == 0  # the report names the column
