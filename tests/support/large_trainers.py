"""Trainers of a model of 4 M weights, whose memory is compared with plans: fixtures for all tests, see tests/conftest.py."""

import gc

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from wagle_trl.memory.allocations import Allocations

VOCABULARY = 4000
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8)
BF16, FP32 = torch.bfloat16, torch.float32


def make_rows(count, length, seed):
    """Random rows of one length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100] * 8 + row[8:] for row in ids]})


@pytest.fixture(scope="module")
def words():
    """Tokenizer of a vocabulary large enough for the LM head to count."""
    model = models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), pad_token="t0", unk_token="t1", eos_token="t2", model_max_length=512
    )


@pytest.fixture
def make_large(make_trainer, tiny_model, words):
    """Factory of trainers of a model of 4 M weights, where weights and state outweigh the chunks of a kernel."""

    def build(kind="npo", *, dtype=BF16, count=4, length=64, **options):
        model = tiny_model(dtype=dtype, **SHAPE)
        rows = make_rows(count, length, 0), make_rows(count, length, 1)
        options = dict(max_length=length, max_steps=2, gradient_checkpointing=True, bf16=False) | options
        return make_trainer(
            kind, model, train_dataset=rows[0], retain_dataset=rows[1], processing_class=words, **options
        )

    return build


def measured(trainer, run, *held):
    """Peak of `run`, with the weights."""
    gc.collect()
    with Allocations([*trainer.model.parameters(), *trainer.model.buffers(), *held]) as memory:
        run()
    return memory.peak
