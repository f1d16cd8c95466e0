"""Models, tokenizers and rows that do not fit each other: one line and exit code 2, before any batch is computed."""

import copy
import json
import shutil

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from wagle_trl.cli.main import main
from wagle_trl.evaluation import inference
from wagle_trl.losses import fused_head


@pytest.fixture
def no_batch(monkeypatch):
    """Fails the test if answers go through a model."""

    def fail(*args, **kwargs):
        raise AssertionError("A batch was computed.")

    monkeypatch.setattr(fused_head, "answer_log_probs", fail)
    monkeypatch.setattr(inference, "answer_logits", fail)


@pytest.fixture
def refused(data, quick, saved_model, capsys, no_batch, tmp_path):
    """`refused(command, message, **options)` runs a command on `saved_model` and checks what it says."""

    def run(command, message, *arguments):
        options = [*data, "--model_name_or_path", saved_model, "--output_dir", str(tmp_path / "out")]
        options += quick[2:] if command != "eval" else []
        assert main([command, *options, *arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"wagle {command}: error: ")]
        assert len(lines) == 1 and message in lines[0], lines

    return run


COMMANDS = pytest.mark.parametrize("command", ["npo", "mask", "eval"])


@COMMANDS
def test_a_folder_without_a_model_is_named(command, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(command, "the folder has no config.json", "--model_name_or_path", str(tmp_path / "empty"))


@COMMANDS
def test_an_encoder_decoder_is_no_causal_language_model(command, refused, tmp_path, tiny_tokenizer):
    config = T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    message = "no causal language model: it is an encoder-decoder (T5ForConditionalGeneration)"
    refused(command, message, "--model_name_or_path", str(tmp_path / "t5"))


@COMMANDS
def test_a_folder_without_a_tokenizer_is_named(command, refused, saved_model, tmp_path):
    shutil.copytree(saved_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    refused(
        command, "has no tokenizer; save that of the base model there", "--model_name_or_path", str(tmp_path / "bare")
    )


@COMMANDS
def test_a_tokenizer_with_more_tokens_than_the_model_is_named(command, refused, saved_model, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(saved_model)
    refused(command, "the padding token has the id 320, and the model has 320 embeddings")


@COMMANDS
def test_a_tokenizer_without_end_of_sequence_is_named(command, refused, saved_model, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(saved_model)
    refused(command, "The tokenizer has no end-of-sequence token")


ROWS = {
    "completion": ({"prompt": "Who?", "completion": 7}, "line 1: 'completion' should be text or a list, got 7"),
    "prompt": ({"prompt": None, "completion": " Ada."}, "Its prompt is null"),
    "labels": ({"input_ids": [5, 6, 7], "labels": [5, 6]}, "It has 3 input_ids and 2 labels"),
    "token": ({"input_ids": [5, 999], "labels": [5, 999]}, "has the id 999, and the model has 320 embeddings"),
    "user": ({"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]}, "role 'user'"),
}


@COMMANDS
@pytest.mark.parametrize(("row", "message"), ROWS.values(), ids=ROWS)
def test_a_row_that_does_not_fit_is_named(command, row, message, refused, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    refused(command, message, "--forget_dataset", str(rows))


@COMMANDS
def test_what_a_chat_template_says_is_passed_on(command, refused, saved_model, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    tokenizer.save_pretrained(saved_model)
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant")]
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    refused(command, "The chat template refuses it: System role not supported", "--forget_dataset", str(rows))
