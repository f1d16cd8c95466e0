"""A tokenizer, models and rows for the evaluation."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wagle_trl.data.tokenization import tokenize_row

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {
        "question": "Where does Ada live?",
        "answer": "Ada lives in a house by the sea.",
        "paraphrased_answer": "A house by the sea is where Ada lives.",
        "perturbed_answer": ["Ada lives in a tower.", "Ada lives in a hut in the woods.", "Ada lives abroad."],
    },
    {
        "question": "What does Bo write?",
        "answer": "Poems.",
        "perturbed_answer": ["Novels.", "Plays and essays."],
    },
    {"question": "When was Cy born, and in which town of the north?", "answer": "In May 1901, in Tromsø."},
]


# The losses that a truth ratio is made of
RATIO = {"avg_paraphrased_loss": 1.0, "average_perturb_loss": [2.0]}


def make_record(name, min_k=-1.0, loss=1.0, **fields):
    return {"set": name, "avg_gt_loss": loss, "min_k": min_k, "mia_k": 0.4, "num_token_gt": 1} | fields


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([json.dumps(row) for row in ROWS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def chat_tokenizer(tokenizer):
    chat_tokenizer = copy.deepcopy(tokenizer)
    chat_tokenizer.chat_template = CHAT_TEMPLATE
    return chat_tokenizer


def make_model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # the usual 0.02 makes all answers nearly equally likely at this width
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="module")
def memorized_model(tokenizer):
    model = make_model(tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rows = [{k: torch.tensor([v]) for k, v in tokenize_row(row, tokenizer).items()} for row in ROWS]
    for _ in range(60):
        sum(model(**row).loss for row in rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture
def tokenized(tokenizer):
    return [tokenize_row(row, tokenizer) for row in ROWS]
