import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.tensor_file import bit_patterns

from ..support.deltas import same_weights

FORMS = pytest.mark.parametrize("shards", ["1GB", "20KB"], ids=["in one file", "in shards"])


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """`model, checkpoint = saved(shards)`: a model, and its folder `model`, with a tokenizer."""

    def build(shards="1GB", **config):
        model = tiny_model(**config)
        model.save_pretrained(tmp_path / "model", max_shard_size=shards)
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        return model, Checkpoint(tmp_path / "model")

    return build


def rewritten(checkpoint, change=lambda name, weights: weights, dtypes=None, then=lambda folder: None):
    return checkpoint.rewrite(checkpoint.folder.parent / "made", change, dtypes or {}, then)


def files_of(folder):
    return {path.name for path in folder.iterdir()}


# Reading


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_that_transformers_saved_holds_the_weights_of_its_model(shards, dtype, saved):
    model, checkpoint = saved(shards, dtype=dtype)
    weights = model.state_dict()
    assert set(checkpoint) == set(weights) and len(checkpoint) == len(weights)
    assert len(checkpoint.files) == (1 if shards == "1GB" else len(list(checkpoint.folder.glob("model-*"))))
    for name, expected in weights.items():
        assert name in checkpoint
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(expected.shape), dtype)
        assert checkpoint.numel(name) == expected.numel()
        assert torch.equal(checkpoint[name], expected)
        flat = expected.view(-1)
        assert torch.equal(checkpoint.read(name, 5, 9), flat[5:9])
    assert "other" not in checkpoint


def test_tied_weights_are_there_once(saved):
    model, checkpoint = saved(tie_word_embeddings=True)
    assert set(checkpoint) == {name for name, _ in model.named_parameters()}


def test_beside_a_whole_model_shards_are_ignored_as_transformers_ignores_them(saved, tiny_model):
    _, checkpoint = saved("20KB")
    save_file(dict(tiny_model(seed=1).state_dict()), checkpoint.folder / "model.safetensors", {"format": "pt"})
    found = Checkpoint(checkpoint.folder)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint.folder).state_dict()
    assert list(found.files) == ["model.safetensors"]
    assert all(torch.equal(found[name], weights) for name, weights in loaded.items())
    made = rewritten(found)
    assert not [name for name in files_of(made) if name.startswith("model") and name != "model.safetensors"]


def test_weights_in_shards_that_the_index_does_not_name_count_as_transformers_loads_them(saved):
    _, checkpoint = saved("20KB")
    index = checkpoint.folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    assert set(Checkpoint(checkpoint.folder)) == set(checkpoint)


@pytest.mark.parametrize("missing", ["folder", "weights"])
def test_a_folder_without_a_model_says_what_is_missing(missing, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        Checkpoint(tmp_path / "none" if missing == "folder" else tmp_path)
    expected = {
        "folder": f"No model at '{tmp_path}/none': the folder does not exist.",
        "weights": f"'{tmp_path}' holds no model.safetensors and no model.safetensors.index.json; load the model with "
        "transformers and save it there with `save_pretrained`.",
    }
    assert str(caught.value) == expected[missing]


# Rewriting


@FORMS
def test_a_rewritten_model_has_the_changed_weights_and_all_else_of_the_old_one(shards, saved):
    model, checkpoint = saved(shards)
    made = rewritten(checkpoint, lambda name, weights: weights + 1 if "norm" in name else weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += "norm" in name
    assert same_weights(AutoModelForCausalLM.from_pretrained(made), model)
    assert files_of(made) == files_of(checkpoint.folder)
    assert (
        AutoTokenizer.from_pretrained(made).get_vocab() == AutoTokenizer.from_pretrained(checkpoint.folder).get_vocab()
    )
    for name in files_of(made):
        if not name.endswith(".safetensors"):
            assert (made / name).read_bytes() == (checkpoint.folder / name).read_bytes()


@FORMS
def test_an_unchanged_model_is_rewritten_as_it_was(shards, saved):
    _, checkpoint = saved(shards)
    made = rewritten(checkpoint)
    for place in checkpoint.files:
        before, after = load_file(checkpoint.folder / place), load_file(made / place)
        assert before.keys() == after.keys()
        assert all(torch.equal(bit_patterns(before[name]), bit_patterns(after[name])) for name in before)


@pytest.mark.parametrize("name_of_dtype", ["dtype", "torch_dtype"])
def test_the_config_declares_the_dtype_that_was_written(name_of_dtype, saved):
    model, checkpoint = saved()
    config_file = checkpoint.folder / "config.json"
    config = json.loads(config_file.read_text())
    config[name_of_dtype] = config.pop("dtype")
    config_file.write_text(json.dumps(config))
    dtypes = dict.fromkeys(checkpoint, torch.bfloat16)
    made = rewritten(Checkpoint(checkpoint.folder), lambda name, weights: weights.bfloat16(), dtypes)
    written = json.loads((made / "config.json").read_text())
    assert written == {key: value for key, value in config.items() if "dtype" not in key} | {"dtype": "bfloat16"}
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert same_weights(loaded, model.bfloat16())


def test_a_model_of_several_dtypes_keeps_its_config(saved):
    _, checkpoint = saved()
    dtypes = dict.fromkeys(checkpoint, torch.bfloat16) | {"model.norm.weight": torch.float32}
    made = rewritten(checkpoint, lambda name, weights: weights.to(dtypes[name]), dtypes)
    assert (made / "config.json").read_text() == (checkpoint.folder / "config.json").read_text()


LEFT_OUT = (
    "README.md",
    "wagle_mask.safetensors",
    "wagle_report.json",
    ".hidden",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "training_args.bin",
    "optimizer.pt",
    "model.gguf",
    "consolidated.safetensors",
    "tf_model.h5",
    "modeling_custom.py",
    "rows.jsonl",
    "LICENSE",
)


def test_what_does_not_load_the_model_is_left_out_and_named(saved):
    _, checkpoint = saved()
    for name in LEFT_OUT:
        (checkpoint.folder / name).write_text("of the old model")
    (checkpoint.folder / "chat_template.jinja").write_text("template")
    (checkpoint.folder / "checkpoint-5").mkdir()
    made = rewritten(checkpoint)
    assert files_of(made) == files_of(checkpoint.folder) - {*LEFT_OUT, "checkpoint-5"}
    assert checkpoint.left_out == sorted([*LEFT_OUT, "checkpoint-5/"])
    assert (made / "chat_template.jinja").read_text() == "template"


def test_the_folder_appears_when_all_is_written(saved):
    _, checkpoint = saved()
    seen = []

    def then(folder):
        seen.append((folder, (checkpoint.folder.parent / "made").exists(), files_of(folder)))

    made = rewritten(checkpoint, then=then)
    assert seen == [(seen[0][0], False, files_of(made))]
    assert not seen[0][0].exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_at_the_end_leaves_nothing(error, saved, tmp_path):
    _, checkpoint = saved()

    def fail(folder):
        raise error

    with pytest.raises(error):
        rewritten(checkpoint, then=fail)
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_with_files_in_it_is_not_overwritten(saved, tmp_path):
    _, checkpoint = saved()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    with pytest.raises(
        ValueError, match="made' exists and is not an empty folder; choose another, because nothing is overwritten"
    ):
        rewritten(checkpoint)
    assert files_of(tmp_path / "made") == {"mine"}
    (tmp_path / "made" / "mine").unlink()
    assert "model.safetensors" in files_of(rewritten(checkpoint))
