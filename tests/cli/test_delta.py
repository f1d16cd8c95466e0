import json
from dataclasses import replace

import pytest
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.cli.main import main
from wagle_trl.deltas.delta import weights_fingerprint

from ..support.deltas import same_weights, unlearned


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.fixture
def requests(saved_model, tmp_path):
    """Folders of two models that were unlearned from one base, with their masks."""
    folders = []
    for seed in range(2):
        model, mask = unlearned(loaded(saved_model), 0.2, seed)
        mask.info = replace(mask.info, base_model=saved_model)
        folders.append(str(tmp_path / f"request-{seed}"))
        model.save_pretrained(folders[-1])
        mask.save(folders[-1])
    return folders


def test_delta_apply_and_undo_go_there_and_back(saved_model, requests, tmp_path, capsys):
    made, back = str(tmp_path / "made"), str(tmp_path / "back")
    kept = str(tmp_path / "kept")
    assert main(["delta", saved_model, requests[0], "--undo", "--output_dir", kept, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    size = (tmp_path / "kept" / "wagle_delta.safetensors").stat().st_size
    assert (content["output_dir"], content["bytes"], content["can_be_undone"]) == (kept, size, True)
    assert content["num_selected"] == WeightMask.load(requests[0]).num_selected
    assert main(["apply", kept, "--output_dir", made]) == 0  # the delta knows its base
    assert same_weights(loaded(made), loaded(requests[0]))
    assert main(["verify", saved_model, made]) == 0
    assert main(["undo", kept, made, "--output_dir", back]) == 0
    assert same_weights(loaded(back), loaded(saved_model))


def test_apply_says_how_to_name_a_base_that_has_moved(saved_model, requests, tmp_path, capsys):
    delta, made = str(tmp_path / "delta"), str(tmp_path / "made")
    assert main(["delta", saved_model, requests[0], "--output_dir", delta]) == 0
    moved = str((tmp_path / "base").rename(tmp_path / "moved"))
    assert main(["apply", delta, "--output_dir", made]) == 2
    assert "as in `wagle apply DELTA BASE`" in " ".join(capsys.readouterr().err.split())
    assert main(["apply", delta, moved, "--output_dir", made]) == 0


def test_apply_and_undo_copy_no_more_than_a_model_and_name_the_rest(saved_model, requests, tmp_path, capsys):
    made, back = tmp_path / "made", tmp_path / "back"
    assert main(["delta", saved_model, requests[0], "--undo", "--output_dir", str(tmp_path / "kept")]) == 0
    (tmp_path / "base" / "modeling.py").write_text("code")
    (tmp_path / "base" / "rows.jsonl").write_text("what was forgotten")
    capsys.readouterr()
    assert main(["apply", str(tmp_path / "kept"), "--output_dir", str(made)]) == 0
    assert f"Not copied from {saved_model}: modeling.py, rows.jsonl." in " ".join(capsys.readouterr().out.split())
    assert {"config.json", "tokenizer.json"} <= {path.name for path in made.iterdir()}
    assert not any((made / name).exists() for name in ("modeling.py", "rows.jsonl"))
    (made / "notes").mkdir()
    assert main(["undo", str(tmp_path / "kept"), str(made), "--output_dir", str(back), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["notes/", "wagle_mask.safetensors"]
    assert not (back / "notes").exists()


def test_a_merge_of_one_delta_says_nothing_of_conflicts(saved_model, requests, tmp_path, capsys):
    assert main(["delta", saved_model, requests[0]]) == 0
    assert main(["merge", requests[0], "--output_dir", str(tmp_path / "rest")]) == 0
    assert "several deltas" not in capsys.readouterr().out


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
    assert main(["merge", *requests, "--weights", "1", "3", "--output_dir", str(tmp_path / "means")]) == 0
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
        (["merge", "{0}/kept", "--output_dir", "{1}"], "exists and is not an empty folder; choose another"),
        (["delta", "{base}", "{base}"], "No mask file at"),
        (["delta", "{0}", "{1}", "--output_dir", "new/folder"], "weights outside the mask differ from"),
        (["delta", "{base}", "{0}", "--undo"], "--undo needs --output_dir: old values hold what was forgotten"),
        (["delta", "{base}", "{0}", "--output_dir", "base/config.json/x"], "Cannot write to output_dir"),
    ],
    ids=["no output", "apply", "undo", "merge", "not empty", "no mask", "other base", "old values", "no place"],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, message, saved_model, requests, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["delta", saved_model, requests[0], "--output_dir", f"{requests[0]}/kept"]) == 0
    before = sorted(tmp_path.rglob("*"))
    assert main([text.format(*requests, base=saved_model) for text in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wagle")]
    assert len(lines) == 1 and message.format(*requests) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1", "1", "{0}", "{1}"], "invalid float value: '{0}'"),
        (["--weights", "1", "1"], "required: DELTA"),
        (["{0}", "{1}", "--weights", "1"], "2 deltas need 2 weights, got 1."),
        (["{0}", "{other}"], "Delta 2 is of another base"),
    ],
    ids=["order", "no deltas", "too few", "other base"],
)
def test_a_merge_that_is_refused_leaves_no_folder(
    options, message, saved_model, tiny_model, requests, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    for folder in requests:
        assert main(["delta", saved_model, folder]) == 0
    base = tiny_model(seed=1)
    model, mask = unlearned(base)
    SparseDelta.from_model(model, mask, weights_fingerprint(base)).save(other)
    argv = ["merge", *(text.format(*requests, other=other) for text in options)]
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert message.format(*requests) in err
    assert ("give the deltas first: wagle merge A B --weights 1 2" in err) == (options[0] == "--weights")
    assert not (tmp_path / "wagle-merged").exists()


@pytest.fixture
def moved_on(tiny_model, hub, tmp_path, monkeypatch):
    """Commits of `user/base`, `user/model` and `user/delta` on the Hub, whose branches hold other weights by now."""
    monkeypatch.chdir(tmp_path)
    (base, other), commits = (tiny_model(), tiny_model(seed=1)), {}
    for before in (base, other):
        before.push_to_hub("user/base")
        commits.setdefault("base", HfApi().repo_info("user/base").sha)
        model, mask = unlearned(before)
        mask.info = replace(mask.info, base_revision=HfApi().repo_info("user/base").sha)
        model.push_to_hub("user/model")
        SparseDelta.from_model(model, mask, weights_fingerprint(before)).push_to_hub("user/delta")
        commits |= (
            {} if before is other else {what: HfApi().repo_info(f"user/{what}").sha for what in ("model", "delta")}
        )
    model, mask = unlearned(base)
    mask.info = replace(mask.info, base_revision=commits["base"])
    model.save_pretrained("out")
    mask.save("out")
    return commits


def test_revisions_on_the_hub_can_be_named(moved_on):
    main_of_base = ["--base_revision", "main"]
    assert main(["delta", "user/base", "out"]) == 0  # at the revision that the mask names
    assert main(["delta", "user/base", "out", *main_of_base]) == 2
    delta = ["user/delta", "--revision", moved_on["delta"]]
    for command in ("apply", "adapter"):
        assert main([command, *delta, "--output_dir", command]) == 0
        assert main([command, *delta, *main_of_base, "--output_dir", "wrong"]) == 2
        assert main([command, "user/delta", *main_of_base, "--output_dir", f"{command}-main"]) == 0
    assert same_weights(loaded("apply"), loaded("out"))
    assert not same_weights(loaded("apply-main"), loaded("out"))


def test_undo_takes_the_unlearned_model_at_a_revision(moved_on):
    assert main(["delta", "user/base", "out", "--undo", "--output_dir", "kept"]) == 0
    assert main(["undo", "kept", "user/model", "--output_dir", "back"]) == 2
    assert main(["undo", "kept", "user/model", "--revision", moved_on["model"], "--output_dir", "back"]) == 0
    expected = AutoModelForCausalLM.from_pretrained("user/base", revision=moved_on["base"], dtype="auto")
    assert same_weights(loaded("back"), expected)


def test_a_delta_without_old_values_is_not_undone(saved_model, requests, tmp_path, capsys):
    assert main(["delta", saved_model, requests[0]]) == 0
    assert main(["undo", requests[0], requests[0], "--output_dir", str(tmp_path / "back")]) == 2
    assert f"holds no old values; load the base model '{saved_model}' instead." in capsys.readouterr().err


def test_an_adapter_is_loaded_by_peft_and_gives_the_unlearned_model(saved_model, requests, tmp_path, capsys):
    folder = str(tmp_path / "adapter")
    assert main(["delta", saved_model, requests[0]]) == 0
    capsys.readouterr()
    assert main(["adapter", requests[0], "--output_dir", folder, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["not_exact"] == 0 and content["weights_changed"] == SparseDelta.load(requests[0]).num_selected
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto").merge_and_unload()
    assert same_weights(model, loaded(requests[0]))
