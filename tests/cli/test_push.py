import json
import os
import socket

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM

from wagle_trl import WeightMask, load_unlearned
from wagle_trl.cli.main import main

from ..support.deltas import same_weights, unlearned
from ..support.uploaded import secrets_in


@pytest.fixture
def unlearned_run(tiny_model, tiny_tokenizer, data, quick, hub, tmp_path):
    """Folder of `wagle npo` from `user/base` on the Hub, evaluated."""
    for saved in (tiny_model(dtype=torch.bfloat16), tiny_tokenizer):
        saved.push_to_hub("user/base")
    folder = str(tmp_path / "out")
    assert main(["npo", "--model_name_or_path", "user/base", *data, *quick, "--save_delta"]) == 0
    options = ["--generate", "false", "--attack", "quantize", "--output_dir", folder]
    assert main(["eval", "--model_name_or_path", folder, *data, *options]) == 0
    return folder


@pytest.fixture
def masked_folder(tiny_model, hub, tmp_path):
    """Folder of a model and its mask, of which no more is known."""
    model, mask = unlearned(tiny_model())
    model.save_pretrained(tmp_path / "out")
    mask.save(tmp_path / "out")
    return str(tmp_path / "out")


def card_of(repo_id):
    return ModelCard.load(repo_id)


def test_model_mask_and_delta_are_pushed_and_loaded_with_their_cards(unlearned_run, capsys):
    for what in ("model", "mask", "delta"):
        capsys.readouterr()
        assert main(["push", unlearned_run, "--what", what, "--hub_model_id", f"user/{what}", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert (content["what"], content["hub_model_id"]) == (what, f"user/{what}")
        assert content["commit"].endswith(HfApi().repo_info(f"user/{what}").sha)
    expected = AutoModelForCausalLM.from_pretrained(unlearned_run, dtype="auto")
    assert same_weights(AutoModelForCausalLM.from_pretrained("user/model", dtype="auto"), expected)
    assert same_weights(load_unlearned("user/delta"), expected)
    assert WeightMask.from_pretrained("user/mask") == WeightMask.load(unlearned_run)
    for what, relation in {"model": "finetune", "mask": "adapter", "delta": "adapter"}.items():
        data = card_of(f"user/{what}").data
        assert (data.base_model, data.base_model_relation) == ("user/base", relation)
        assert "unlearning" in data.tags
    assert {result.metric_type for result in card_of("user/delta").data.eval_results} >= {"forget_prob", "retain_prob"}


def test_what_was_pushed_is_verified_against_its_base_on_the_hub(unlearned_run, tmp_path, capsys):
    assert main(["push", unlearned_run, "--hub_model_id", "user/model"]) == 0
    assert main(["push", unlearned_run, "--what", "delta", "--hub_model_id", "user/delta"]) == 0
    assert main(["verify", "user/base", "user/model"]) == 0
    assert "Verified" in capsys.readouterr().out
    made = str(tmp_path / "made")
    assert main(["apply", "user/delta", "--output_dir", made]) == 0
    assert main(["verify", "user/base", made, "user/model"]) == 0


def test_names_can_be_kept_out_of_the_card(unlearned_run):
    push = ["push", unlearned_run, "--hub_model_id", "user/hashed", "--hash_forget_set", "--license", "mit"]
    assert main(push) == 0
    card = card_of("user/hashed")
    assert "forget.jsonl" not in str(card) and "HMAC-SHA-256" in str(card)
    assert card.data.license == "mit"


def test_what_stays_at_home_and_what_earlier_commits_hold_is_said(masked_folder, tiny_model, tmp_path, capsys):
    push = ["push", masked_folder, "--hub_model_id", "user/model", "--hub_revision", "v1"]
    (tmp_path / "out" / "rows.jsonl").write_text("what was forgotten")
    assert main(push) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out: rows.jsonl." in said and "Earlier commits" not in said
    other, mask = unlearned(tiny_model(), seed=1)
    other.save_pretrained(masked_folder)
    mask.save(masked_folder)
    assert main(push) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Earlier commits of user/model still hold the weights that were there (model.safetensors)" in said
    assert 'HfApi().super_squash_history("user/model", branch="v1")' in said
    tiny_model().save_pretrained(masked_folder)
    assert main([*push, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["left_out"], content["replaced"]) == (["rows.jsonl"], ["model.safetensors"])


@pytest.mark.parametrize("hashed", [True, False])
def test_nothing_that_is_pushed_tells_secrets(hashed, saved_model, data, quick, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-seven")
    local = ["--model_name_or_path", saved_model, "--hub_token", hub.token]
    hiding = ["--hash_forget_set"] if hashed else []
    folder = str(tmp_path / "out")
    assert main(["npo", *local, *data, *quick, "--save_delta", *hiding]) == 0
    scoring = ["--generate", "false", "--output_dir", folder]
    assert main(["eval", "--model_name_or_path", folder, *data, *scoring]) == 0
    AutoModelForCausalLM.from_pretrained(saved_model).push_to_hub("user/base")
    for what, options in {"model": [], "mask": [], "delta": ["--base_model_name_or_path", "user/base"]}.items():
        options += ["--what", what, "--hub_model_id", f"user/{what}", "--hub_token", hub.token, *hiding]
        assert main(["push", folder, *options]) == 0
        assert hub.repositories[f"user/{what}"].objects
    secrets = [hub.token, "ward-seven", str(tmp_path), os.path.expanduser("~"), "Where does Ada live?", "Ada lives in"]
    assert secrets_in(hub, [*secrets, *(["forget.jsonl"] if hashed else [])]) == set()


def test_a_card_is_written_edited_and_pushed(unlearned_run, tmp_path, capsys):
    assert main(["card", unlearned_run, "--json"]) == 0
    capsys.readouterr()
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text().replace("Unlearning is not deletion", "By hand: unlearning is not deletion"))
    assert main(["push", unlearned_run, "--hub_model_id", "user/model", "--card", str(path)]) == 0
    assert "By hand: unlearning" in str(card_of("user/model"))


def test_the_repository_is_named_like_the_folder_and_private_if_asked(masked_folder, hub):
    assert main(["push", masked_folder, "--what", "mask", "--hub_private_repo", "true"]) == 0
    assert hub.repositories["user/out"].private
    assert 'WeightMask.from_pretrained("user/out")' in str(card_of("user/out"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: FOLDER (see `wagle push --help`)"),
        (["{run}", "--what", "weights"], "argument --what: invalid choice"),
        (["{empty}"], "No card can be written from '{empty}'"),
        (
            ["{run}", "--before", "{empty}"],
            "holds no wagle_eval.json; give the folder of `wagle eval` of the base model",
        ),
        (["{run}", "--card", "missing.md"], "missing.md"),
        (
            ["{run}", "--base_model_name_or_path", "{empty}"],
            "'{empty}' is a local path; give the name of the base model",
        ),
        (["{run}", "--what", "delta"], "The base model 'user/base' is not known to be on the Hub; give the name"),
    ],
    ids=["nothing", "what", "folder", "before", "card", "base", "delta"],
)
def test_bad_input_is_one_line_and_makes_no_repository(argv, message, masked_folder, hub, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    names = {"run": masked_folder, "empty": str(tmp_path / "empty")}
    capsys.readouterr()
    assert main(["push", *(text.format(**names) for text in argv)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wagle push")]
    assert len(lines) == 1 and message.format(**names) in lines[0]
    assert not hub.repositories


def test_a_push_without_rights_is_one_line(masked_folder, capsys):
    assert main(["push", masked_folder, "--hub_model_id", "somebody/model"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("wagle push: error: ") and "403" in err


def test_a_hub_that_cannot_be_reached_is_one_line(masked_folder, hub, capsys):
    hub.server.server_close()
    assert main(["push", masked_folder, "--hub_model_id", "user/model"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("wagle push: error: ")


def test_an_upload_that_breaks_off_is_one_line(masked_folder, hub, capsys):
    hub.cut("PUT", "/lfs/", after_bytes=64, times=float("inf"))
    assert main(["push", masked_folder, "--hub_model_id", "user/model"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("wagle push: error: ")
