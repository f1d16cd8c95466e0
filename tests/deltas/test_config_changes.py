import json
import shutil

import pytest
from transformers import LlamaConfig, MixtralConfig, Qwen2Config, RobertaConfig

from wagle_trl.deltas.config_changes import config_changes, other_files

LLAMA = LlamaConfig(num_hidden_layers=2, hidden_size=32, architectures=["LlamaForCausalLM"], dtype="bfloat16")


@pytest.fixture
def folders(tmp_path):
    """`folders(config, **changed)`: a folder of a config, and a copy with some keys changed; `None` takes one out."""

    def build(config=LLAMA, **changed):
        base, unlearned = tmp_path / "base", tmp_path / "unlearned"
        config.save_pretrained(base)
        content = json.loads((base / "config.json").read_text()) | changed
        unlearned.mkdir()
        (unlearned / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return base, unlearned

    return build


@pytest.mark.parametrize(
    ("changed", "changes"),
    [
        ({"num_hidden_layers": 1}, {"num_hidden_layers": ("2", "1")}),
        ({"rms_norm_eps": 10}, {"rms_norm_eps": ("1e-06", "10")}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
            {"rope_parameters.rope_theta": ("10000.0", "3.0")},
        ),
        ({"rope_parameters": None, "rope_theta": 3.0}, {"rope_parameters.rope_theta": ("10000.0", "3.0")}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": ("false", "true")}),
        ({"architectures": ["Other"]}, {"architectures": ('["LlamaForCausalLM"]', '["Other"]')}),
        ({"auto_map": {"AutoConfig": "x.Y"}}, {"auto_map": ("absent", '{"AutoConfig": "x.Y"}')}),
        ({"attn_implementation": "user/kernel"}, {"attn_implementation": ("absent", '"user/kernel"')}),
        ({"quantization_config": {"quant_method": "x"}}, {"quantization_config": ("absent", '{"quant_method": "x"}')}),
        ({"model_type": "mistral"}, {"model_type": ('"llama"', '"mistral"')}),
        ({"num_attention_heads": 7}, {"num_attention_heads": ("32", "7")}),
        ({"num_hidden_layers": "many"}, {"num_hidden_layers": ("2", '"many"')}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_makes_another_model_is_named_with_its_values(changed, changes, folders):
    assert config_changes(*folders(**changed)) == changes


@pytest.mark.parametrize(
    "changed",
    [
        {"use_cache": False, "dtype": "float32", "transformers_version": "4.40.0", "_name_or_path": "user/base"},
        {"pad_token_id": 7, "eos_token_id": [2, 3], "bos_token_id": None},
        # A config of transformers 4: other names, and defaults that it does not state
        {
            "rope_parameters": None,
            "rope_theta": 10000,
            "rope_scaling": None,
            "dtype": None,
            "torch_dtype": "bfloat16",
            "head_dim": None,
            "mlp_bias": None,
            "_attn_implementation_autoset": True,
        },
    ],
    ids=["saving", "tokens", "transformers 4"],
)
def test_what_saving_and_training_change_is_no_difference(changed, folders):
    assert config_changes(*folders(**changed)) == {}


def test_the_auxiliary_loss_that_trl_switches_on_is_no_difference(folders):
    config = MixtralConfig(num_hidden_layers=1)
    assert config_changes(*folders(config, output_router_logits=True, router_aux_loss_coef=0.5)) == {}


def test_a_model_that_transformers_does_not_know_is_compared_as_it_is_written(folders):
    base, unlearned = folders(model_type="mine", depth={"of": [1, float("nan")], "dtype": "float32"})
    assert set(config_changes(base, unlearned)) == {"model_type", "depth"}
    shutil.copy(unlearned / "config.json", base / "config.json")
    assert config_changes(base, unlearned) == {}
    (unlearned / "config.json").write_text((base / "config.json").read_text().replace("float32", "int8"))
    assert config_changes(base, unlearned) == {}
    (unlearned / "config.json").write_text((base / "config.json").read_text().replace('"of": [1', '"of": [2'))
    assert config_changes(base, unlearned) == {"depth.of": ("[1, NaN]", "[2, NaN]")}


def test_a_folder_without_a_config_differs_in_every_key(folders):
    base, unlearned = folders()
    (unlearned / "config.json").unlink()
    changes = config_changes(base, unlearned)
    assert changes["num_hidden_layers"] == ("2", "absent")
    (base / "config.json").unlink()
    assert config_changes(base, unlearned) == {}


def test_a_strangers_config_fills_neither_memory_nor_terminal(folders):
    layers = 10**12  # Qwen2Config makes a list of them
    base, unlearned = folders(Qwen2Config(), num_hidden_layers=layers, **{"\x1b[2J": "x" * 10**6})
    changes = config_changes(base, unlearned)
    assert changes["num_hidden_layers"][1] == str(layers)
    assert "\\u001b[2J" in changes and all(text.isprintable() for text in changes)
    assert all(len(text) < 100 for change in changes.values() for text in change)


@pytest.mark.parametrize("depth", [900, 2000])
def test_deep_nesting_is_refused_or_compared(depth, folders):
    base, unlearned = folders()
    text = '{"a": ' * depth + "1" + "}" * depth
    (unlearned / "config.json").write_text(text)
    try:
        assert config_changes(base, unlearned)
    except ValueError as error:
        assert "nests too deep" in str(error)


def test_other_files_that_differ_are_listed(folders):
    base, unlearned = folders()
    for folder in (base, unlearned):
        (folder / "tokenizer.json").write_text("{}")
        (folder / "generation_config.json").write_text(json.dumps({"transformers_version": folder.name, "top_k": 5}))
        for name in ("wagle_report.json", "trainer_state.json", "README.md", "model.safetensors.index.json"):
            (folder / name).write_text(folder.name)
    assert other_files(base, unlearned) == []
    (unlearned / "tokenizer.json").write_text("{ }")
    (unlearned / "chat_template.jinja").write_text("Hello")
    (unlearned / "generation_config.json").write_text(json.dumps({"top_k": 1}))
    (base / "bro\nken.json").write_text("")
    assert other_files(base, unlearned) == [
        "bro\\nken.json",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
    ]
    (base / "generation_config.json").write_text("not")
    (unlearned / "generation_config.json").write_text("JSON")
    assert "generation_config.json" in other_files(base, unlearned)


def test_the_padding_token_counts_where_positions_start_behind_it(folders):
    roberta = RobertaConfig(num_hidden_layers=1, pad_token_id=1)
    assert config_changes(*folders(roberta, pad_token_id=20)) == {"pad_token_id": ("1", "20")}


def test_other_code_makes_another_model(folders):
    base, unlearned = folders(LLAMA, auto_map={"AutoModel": "modeling_x.Model"})
    shutil.copy(unlearned / "config.json", base)
    for folder in (base, unlearned):
        (folder / "modeling_x.py").write_text("one = 1")
    assert not config_changes(base, unlearned)
    (unlearned / "modeling_x.py").write_text("one = 2")
    assert config_changes(base, unlearned) == {"auto_map": ('"code of the base"', '["modeling_x.py"]')}
