import json

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.cli.main import main

from ..deltas import same_weights, unlearned


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.fixture
def requests(saved_model, tmp_path):
    """Folders of two models that were unlearned from one base, with their masks."""
    folders = []
    for seed in range(2):
        model, mask = unlearned(loaded(saved_model), 0.2, seed)
        mask.info["base_model"] = saved_model
        folders.append(str(tmp_path / f"request-{seed}"))
        model.save_pretrained(folders[-1])
        mask.save(folders[-1])
    return folders


def test_delta_apply_and_undo_go_there_and_back(saved_model, requests, tmp_path, capsys):
    made, back = str(tmp_path / "made"), str(tmp_path / "back")
    assert main(["delta", saved_model, requests[0], "--undo", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    size = (tmp_path / "request-0" / "wagle_delta.safetensors").stat().st_size
    assert (content["output_dir"], content["bytes"], content["can_be_undone"]) == (requests[0], size, True)
    assert content["num_selected"] == WeightMask.load(requests[0]).num_selected
    assert main(["apply", requests[0], "--output_dir", made]) == 0  # the delta knows its base
    assert same_weights(loaded(made), loaded(requests[0]))
    assert main(["verify", saved_model, made]) == 0
    assert main(["undo", requests[0], made, "--output_dir", back]) == 0
    assert same_weights(loaded(back), loaded(saved_model))


def test_merge_reports_conflicts_and_its_delta_applies(saved_model, requests, tmp_path, capsys):
    for folder in requests:
        assert main(["delta", saved_model, folder]) == 0
    capsys.readouterr()
    merged, made = str(tmp_path / "merged"), str(tmp_path / "made")
    assert main(["merge", *requests, "--output_dir", merged, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    first, second = (WeightMask.load(folder) for folder in requests)
    shared = (first & second).num_selected
    assert content["shared"] == content["conflicts"] == sum(content["conflicts_by_parameter"].values()) == shared
    assert content["num_selected"] == (first | second).num_selected
    assert main(["apply", merged, saved_model, "--output_dir", made]) == 0
    expected = SparseDelta.load(requests[0]).apply(loaded(saved_model))
    winner = loaded(requests[1])
    for name, parameter in expected.named_parameters():
        parameter.data[second.dense(name)] = winner.get_parameter(name)[second.dense(name)]
    assert same_weights(loaded(made), expected)
    assert main(["merge", *requests, "--weights", "1", "3", "--output_dir", merged]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"for {shared:,} they differ: their weighted mean is taken." in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["apply", "{0}"],
            "the following arguments are required: --output_dir/--output-dir (see `wagle apply --help`)",
        ),
        (["apply", "{0}", "--output_dir", "made"], "No delta at {0}/wagle_delta.safetensors"),
        (["undo", "{0}", "{0}", "--output_dir", "made"], "No delta at"),
        (["merge", "{0}", "{1}"], "No delta at"),
        (["delta", "{base}", "{base}"], "No mask file at"),
        (["delta", "{0}", "{1}"], "weights outside the mask differ from"),
    ],
    ids=["no output", "apply", "undo", "merge", "no mask", "other base"],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, message, saved_model, requests, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([text.format(*requests, base=saved_model) for text in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wagle")]
    assert len(lines) == 1 and message.format(*requests) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_delta_without_old_values_is_not_undone(saved_model, requests, tmp_path, capsys):
    assert main(["delta", saved_model, requests[0]]) == 0
    assert main(["undo", requests[0], requests[0], "--output_dir", str(tmp_path / "back")]) == 2
    assert f"holds no values from before; load the base model '{saved_model}' instead." in capsys.readouterr().err


def test_an_adapter_is_loaded_by_peft_and_gives_the_unlearned_model(saved_model, requests, tmp_path, capsys):
    folder = str(tmp_path / "adapter")
    assert main(["delta", saved_model, requests[0]]) == 0
    capsys.readouterr()
    assert main(["adapter", requests[0], "--output_dir", folder, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["not_exact"] == 0 and content["weights_changed"] == SparseDelta.load(requests[0]).num_selected
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto").merge_and_unload()
    assert same_weights(model, loaded(requests[0]))
