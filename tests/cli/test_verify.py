import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from wagle_trl import WeightMask
from wagle_trl.cli.main import main
from wagle_trl.masks.info import MaskInfo


@pytest.fixture
def unlearned_folder(saved_model, tmp_path):
    """Folder of a model that moved in every tenth weight of its layers, with its mask."""
    model, folder = AutoModelForCausalLM.from_pretrained(saved_model, dtype="auto"), tmp_path / "unlearned"
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name:
                masks[name] = torch.arange(parameter.numel()).view(parameter.shape) % 10 == 0
                parameter[masks[name]] += 0.25
    model.save_pretrained(folder)
    WeightMask.from_dense(masks, MaskInfo(score="random", base_model=saved_model)).save(folder)
    return str(folder)


def tamper(folder):
    """Changes two weights of the norm, which no mask selects."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        model.model.norm.weight[:2] += 1
    model.save_pretrained(folder)


def test_verify_says_that_only_selected_weights_moved_and_by_how_much(saved_model, unlearned_folder, capsys):
    assert main(["verify", saved_model, unlearned_folder, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    mask = WeightMask.load(unlearned_folder)
    assert content["verified"] is True and content["violations"] == {}
    assert content["moved"] == content["selected"] == mask.num_selected
    assert (content["mean_change"], content["max_change"]) == pytest.approx((0.25, 0.25), rel=1e-4)
    assert list(content["layers"]) == ["-", "0", "1"]
    assert content["layers"]["-"]["moved"] == 0


def test_verify_fails_with_one_weight_outside_the_mask(saved_model, unlearned_folder, capsys):
    tamper(unlearned_folder)
    assert main(["verify", saved_model, unlearned_folder]) == 1
    out = capsys.readouterr().out
    assert "model.norm.weight" in out and "FAILED: 2 weights outside the mask differ." in out


def test_verify_fails_with_a_config_that_makes_another_model(saved_model, unlearned_folder, capsys):
    path = Path(unlearned_folder, "config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 1, "rms_norm_eps": 10.0, "use_cache": False}))
    assert main(["verify", saved_model, unlearned_folder]) == 1
    out = capsys.readouterr().out
    assert "num_hidden_layers" in out and "2 -> 1" in out
    assert "FAILED: config.json describes another model (keys: 2)." in out
    code = main(["verify", saved_model, unlearned_folder, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert code == 1 and content["verified"] is False
    assert content["config_changes"]["num_hidden_layers"] == {"before": "2", "after": "1"}


def test_verify_lists_other_files_that_differ_and_weights_that_are_no_numbers(saved_model, unlearned_folder, capsys):
    Path(unlearned_folder, "[red]chat_template.jinja").write_text("Hello")
    model = AutoModelForCausalLM.from_pretrained(unlearned_folder, dtype="auto")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(unlearned_folder)
    assert main(["verify", saved_model, unlearned_folder]) == 0
    out = capsys.readouterr().out
    assert "Other files that differ, which does not count here: [red]chat_template.jinja, tokenizer" in out
    assert "1 of the weights after are NaN or infinite." in out
    assert main(["verify", saved_model, unlearned_folder, "--json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (content["non_finite"], content["layers"]["1"]["non_finite"], content["layers"]["0"]["non_finite"]) == (
        1,
        1,
        0,
    )


def test_experts_that_files_name_otherwise_are_said_to_be_out_of_reach(tmp_path, capsys):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_hidden_layers=1, num_local_experts=2, **sizes))
    model.save_pretrained(tmp_path)
    WeightMask.from_dense({name: torch.ones(p.shape) for name, p in model.named_parameters()}).save(tmp_path)
    assert main(["verify", str(tmp_path), str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "files use other names for tensors than the model does" in err
    assert "use load_unlearned and save_pretrained" in err


@pytest.fixture
def published(tiny_model, tiny_tokenizer, data, quick, hub, tmp_path):
    """`user/model` and `user/delta` on the Hub, unlearned from `user/base`, which changed since."""
    for saved in (tiny_model(dtype=torch.bfloat16), tiny_tokenizer):
        saved.push_to_hub("user/base")
    assert main(["npo", "--model_name_or_path", "user/base", *data, *quick, "--save_delta"]) == 0
    for what in ("model", "delta"):
        assert main(["push", str(tmp_path / "out"), "--what", what, "--hub_model_id", f"user/{what}"]) == 0
    commit = HfApi().repo_info("user/base").sha
    tiny_model(seed=1, dtype=torch.bfloat16).push_to_hub("user/base")
    return commit


@pytest.mark.parametrize("what", ["model", "delta"])
def test_the_commands_of_published_cards_verify(what, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = ModelCard.load(f"user/{what}").text.split("## How to verify")[1]
    commands = re.search(r"```bash\n(.*?)```", section, re.S)[1].splitlines()
    assert [command.split()[1] for command in commands] == (["apply"] if what == "delta" else []) + ["verify"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert commands[-1].endswith(f" --base_revision {published}")


def test_the_base_is_taken_at_the_revision_that_the_mask_names(published, capsys):
    capsys.readouterr()
    assert main(["verify", "user/base", "user/model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base_revision"] == published
    assert main(["verify", "user/base", "user/model", "--base_revision", "main"]) == 1


def test_verify_takes_a_mask_from_elsewhere(saved_model, unlearned_folder, tmp_path, capsys):
    (tmp_path / "unlearned" / "wagle_mask.safetensors").rename(tmp_path / "mask.safetensors")
    assert main(["verify", saved_model, unlearned_folder, str(tmp_path / "mask.safetensors")]) == 0
    assert "Verified: no weight outside the mask differs." in capsys.readouterr().out
    assert main(["verify", saved_model, unlearned_folder]) == 1
    assert "DIFFERENT, and there is no mask that says what may differ" in capsys.readouterr().out


def test_without_a_mask_two_equal_models_are_the_same(saved_model, capsys):
    assert main(["verify", saved_model, saved_model]) == 0
    assert "There is no mask, and nothing differs" in capsys.readouterr().out
    assert main(["verify", saved_model, saved_model, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verified"] is True and content["mask"] is None and content["differing"] == {}


def test_models_of_the_hub_without_a_mask_are_compared_too(tiny_model, hub, capsys):
    tiny_model().push_to_hub("user/base")
    assert main(["verify", "user/base", "user/base"]) == 0
    assert "There is no mask, and nothing differs" in capsys.readouterr().out


def test_without_a_mask_everything_that_differs_is_listed(saved_model, unlearned_folder, capsys):
    folder = Path(unlearned_folder)
    (folder / "wagle_mask.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 10.0}))
    (folder / "chat_template.jinja").write_text("Hello")
    model = load_file(folder / "model.safetensors")
    norm = model.pop("model.norm.weight")
    up = "model.layers.0.mlp.up_proj.weight"
    model |= {"model.extra.weight": norm.clone(), up: model[up].double()}
    save_file(model, folder / "model.safetensors", {"format": "pt"})
    assert main(["verify", saved_model, unlearned_folder, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["verified"] is False
    assert content["only_in_base"] == ["model.norm.weight"] and content["only_in_unlearned"] == ["model.extra.weight"]
    assert content["dtypes"] == {up: {"before": "float32", "after": "float64"}}
    assert content["differing"][up]["share"] == pytest.approx(0.1, abs=0.01)
    assert content["config_changes"].keys() == {"rms_norm_eps"} and "chat_template.jinja" in content["other_files"]
    assert main(["verify", saved_model, unlearned_folder]) == 1
    out = capsys.readouterr().out
    assert up in out and "rms_norm_eps" in out and "Tensors that only BASE has: model.norm.weight." in out


def test_without_a_mask_another_shape_is_listed_and_equal_numbers_in_another_dtype_differ(
    saved_model, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(saved_model, other)
    model = load_file(other / "model.safetensors")
    model |= {"model.norm.weight": torch.ones(3)}
    save_file(model, other / "model.safetensors", {"format": "pt"})
    assert main(["verify", saved_model, str(other), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["shapes"].keys() == {"model.norm.weight"} and content["differing"] == {}
    AutoModelForCausalLM.from_pretrained(saved_model, dtype="float64").save_pretrained(other)
    assert main(["verify", saved_model, str(other), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["dtypes"] and content["differing"] == {} and content["loaded_as"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: BASE, UNLEARNED (see `wagle verify --help`)"),
        (["{base}", "{base}", "{base}"], "No mask file at"),
        (["missing/folder", "{unlearned}"], "missing/folder"),
    ],
    ids=["nothing", "no mask", "no base"],
)
def test_verify_says_what_is_wrong_in_one_line(argv, message, saved_model, unlearned_folder, capsys):
    assert main(["verify", *(text.format(base=saved_model, unlearned=unlearned_folder) for text in argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("wagle verify: error: ") and err.count("\n") == 1
    assert message in err
