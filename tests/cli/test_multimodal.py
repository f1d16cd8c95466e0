"""Multimodal checkpoints used for text: every command loads them alike."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from wagle_trl import WeightMask, load_unlearned
from wagle_trl.cli.main import main

from ..support.architectures import build_multimodal


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_every_command_takes_it(kind, tiny_tokenizer, data, quick, write_jsonl, tmp_path, capsys):
    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    model = build_multimodal(kind)
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    named = ["--model_name_or_path", base]

    assert main(["plan", *named, "--gpu", "24GB", "--max_length", "32"]) == 0
    assert main(["npo", *named, *data, *quick, "--save_delta", "true", "--trajectory_steps", "0"]) == 0
    mask = WeightMask.load(out)
    assert mask.numel > 0 and all("vision" not in name and "visual" not in name for name in mask.bits)

    assert main(["verify", base, out]) == 0
    rows = [write_jsonl(name, [{"question": f"Where does {name} live?", "answer": "Oslo."}]) for name in ("Ada", "Bo")]
    options = ["--batch_size", "2", "--max_new_tokens", "2", "--forget_dataset", rows[0], "--retain_dataset", rows[1]]
    capsys.readouterr()
    options += ["--base_model_name_or_path", base, "--output_dir", str(tmp_path / "eval"), "--json"]
    assert main(["eval", "--model_name_or_path", out, *options]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["forget_prob"] < 1

    unlearned = AutoModelForImageTextToText.from_pretrained(out)
    loaded = load_unlearned(out, base_model_name_or_path=base)
    for name, weights in unlearned.named_parameters():
        assert torch.equal(weights, loaded.get_parameter(name)), name
    assert main(["apply", out, base, "--output_dir", str(tmp_path / "applied")]) == 0
    applied = AutoModelForImageTextToText.from_pretrained(tmp_path / "applied")
    for name, weights in unlearned.named_parameters():
        assert torch.equal(weights, applied.get_parameter(name)), name
