import json

import pytest

from wagle_trl import WeightMask
from wagle_trl.cli.main import main


def test_mask_writes_the_mask_its_picture_and_its_report(saved_model, data, quick, tmp_path, capsys):
    argv = [
        "mask",
        "--model_name_or_path",
        saved_model,
        *data,
        *quick,
        "--mask_score",
        "wagle",
        "--mask_density",
        "0.1",
        "--plot_pdf",
    ]
    assert main([*argv, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert content["num_selected"] == WeightMask.load(out).num_selected
    assert set(content["jaccard"]) == {"|g_f|", "|theta*g_f|", "|g_f*g_r|", "|theta|", "random"}
    assert (out / "wagle_mask.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "wagle_mask.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((out / "wagle_report.json").read_text())["mask"]["density"] == content["density"]
    assert not (out / "model.safetensors").exists()


def test_scope_and_exclude_take_several_patterns(saved_model, data, quick, tmp_path, capsys):
    options = ["--mask_scope", "*mlp*", "*self_attn*", "--mask_exclude", "*down_proj*"]
    assert main(["mask", "--model_name_or_path", saved_model, *data, *quick, *options]) == 0
    names = set(WeightMask.load(tmp_path / "out").bits)
    assert names and all("mlp" in name or "self_attn" in name for name in names)
    assert not any("down_proj" in name for name in names)


@pytest.mark.parametrize("source", ["none", "auto", "some/mask"])
def test_a_yaml_file_of_npo_that_says_where_the_mask_comes_from_serves(source, saved_model, data, quick, tmp_path):
    config = tmp_path / "npo.yaml"
    config.write_text(f"mask: {source}\nmask_density: 0.5\nlearning_rate: 1.0e-4\n")
    assert main(["mask", "--config", str(config), "--model_name_or_path", saved_model, *data, *quick]) == 0
    assert WeightMask.load(tmp_path / "out").density == pytest.approx(0.5, abs=1e-3)
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["objective"] == "mask" and all(name.startswith("mask_") for name in report["options"])
