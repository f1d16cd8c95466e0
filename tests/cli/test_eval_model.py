"""Adapters in `wagle eval`."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wagle_trl.cli.eval_model import EvalModel
from wagle_trl.cli.main import main


@pytest.fixture
def adapter(saved_model, tiny_tokenizer, tmp_path):
    """Folder of adapters of the saved model that change what it says, with its tokenizer."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["up_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(saved_model), config)
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_adapters_are_merged_into_the_model_they_were_trained_on(adapter, saved_model):
    options = EvalModel(adapter, dtype="float32", base_model_name_or_path=saved_model)
    model = options.load()
    base = dict(options.load_base(model).named_parameters())
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, base[name])}
    assert changed == {f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)}
    assert EvalModel("any", base_model_name_or_path=adapter).load_base(model).state_dict().keys() == base.keys()


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_merged_weights_have_the_dtype_that_was_asked_for(adapter, dtype, expected):
    assert {weight.dtype for weight in EvalModel(adapter, dtype=dtype).load().parameters()} == {expected}


def test_adapters_are_compared_with_a_base_and_quantized_like_any_model(adapter, saved_model, data, tmp_path, capsys):
    options = ["eval", "--model_name_or_path", adapter, *data, "--output_dir", str(tmp_path / "e")]
    options += ["--base_model_name_or_path", saved_model, "--attack", "quantize", "--generate", "false", "--json"]
    assert main(options) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kl_to_base_retain"] > 0
    assert 0 < content["weights_changed"] < 1
    up_proj = 2 * 32 * 64
    total = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(saved_model).parameters())
    assert content["weights_changed"] == pytest.approx(up_proj / total, rel=0.01)
    assert len({values["forget_prob"] for values in (content, *content["attacks"].values())}) == 3


BAD_CONFIGS = {
    "number as text": ("eval", "config.json", {"hidden_size": "32"}),
    "list for a name": ("eval", "config.json", {"model_type": ["llama"]}),
    "heads that do not fit": ("plan", "config.json", {"num_attention_heads": 7}),
    "number of layers as text": ("plan", "config.json", {"num_hidden_layers": "many"}),
    "adapters of no kind": ("eval", "adapter_config.json", {"peft_type": 3, "base_model_name_or_path": "base"}),
    "adapters of a list": ("eval", "adapter_config.json", {"base_model_name_or_path": ["base"]}),
}


@pytest.mark.parametrize(("command", "file", "content"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_of_another_shape_is_one_line_that_names_the_model(
    command, file, content, saved_model, data, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = Path(saved_model, file)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
    options = {"eval": data, "plan": ["--gpu", "24GB", "--max_length", "64"]}[command]
    assert main([command, "--model_name_or_path", saved_model, *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"wagle {command}: error: Cannot load '{saved_model}': ") and len(line) < 800
