"""Model, tokenizer and rows against each other."""

import copy

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from wagle_trl.data.compatibility import check_tokens


def test_tokens_that_the_model_knows_pass(tiny_model, tiny_tokenizer):
    check_tokens(tiny_model(), tiny_tokenizer, {"forget": [[5, len(tiny_tokenizer) - 1], []]})
    check_tokens(tiny_model(), tiny_tokenizer, {"forget": [[5] * 200]})  # rotary positions go on


def test_a_token_beyond_the_embeddings_is_named(tiny_model, tiny_tokenizer):
    with pytest.raises(
        ValueError, match=r"of row 1 of the retain set has the id 300, and the model has 200 embeddings"
    ):
        check_tokens(tiny_model(vocab_size=200), tiny_tokenizer, {"forget": [[5]], "retain": [[5], [6, 300, 7]]})


def test_a_padding_token_beyond_the_embeddings_is_named(tiny_model, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    message = r"The token '\[PAD\]' of the padding token has the id 320, and the model has 320 embeddings; .*\(321\)"
    with pytest.raises(ValueError, match=message):
        check_tokens(tiny_model(), tokenizer, {})


def test_a_row_longer_than_learned_positions_is_named(tiny_tokenizer):
    config = GPT2Config(vocab_size=320, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    check_tokens(GPT2LMHeadModel(config), tiny_tokenizer, {"forget": [[5] * 8]})
    with pytest.raises(
        ValueError, match=r"Row 1 of the forget set has 9 tokens, and the model has 8 positions; set max_length"
    ):
        check_tokens(GPT2LMHeadModel(config), tiny_tokenizer, {"forget": [[5], [5] * 9]})
