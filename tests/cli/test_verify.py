import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from wagle_trl import WeightMask
from wagle_trl.cli.main import main


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
    WeightMask.from_dense(masks, {"score": "random", "base_model": saved_model}).save(folder)
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


def test_verify_takes_a_mask_from_elsewhere(saved_model, unlearned_folder, tmp_path, capsys):
    (tmp_path / "unlearned" / "wagle_mask.safetensors").rename(tmp_path / "mask.safetensors")
    assert main(["verify", saved_model, unlearned_folder, str(tmp_path / "mask.safetensors")]) == 0
    assert "Verified: no weight outside the mask differs." in capsys.readouterr().out
    assert main(["verify", saved_model, unlearned_folder]) == 2
    assert "No mask file at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: BASE, UNLEARNED (see `wagle verify --help`)"),
        (["{base}", "{base}"], "No mask file at"),
        (["missing/folder", "{unlearned}"], "Cannot"),
    ],
    ids=["nothing", "no mask", "no base"],
)
def test_verify_says_what_is_wrong_in_one_line(argv, message, saved_model, unlearned_folder, capsys):
    assert main(["verify", *(text.format(base=saved_model, unlearned=unlearned_folder) for text in argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("wagle verify: error: ") and err.count("\n") == 1
    assert message in err
