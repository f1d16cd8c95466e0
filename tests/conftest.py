"""Fixtures for all tests: a tokenizer and Llamas of a few thousand weights, built in code, and rows to learn."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: it is read when a kernel is decorated

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .kernels.conftest import allocations
from .support.fixed_costs import (
    nothing_waits_for_the_disk,
    old_objects_are_no_garbage,
    pictures_are_drawn_once,
    templates_are_compiled_once,
)
from .support.hub import Hub, connected
from .support.large_trainers import make_large, words
from .support.trainers import (
    assert_only_selected_moved,
    batches_of,
    learned,
    log_probs_of,
    make_config,
    make_trainer,
    small_mask,
    snapshot,
)

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """What came of the examples of tests/support/fuzzing.py, whichever process made them."""
    counts = {}
    for report in terminalreporter.stats.get("passed", ()):
        for kind, *numbers in (value for name, value in report.user_properties if name == "fuzzed"):
            counts[kind] = [a + b for a, b in zip(counts.get(kind, (0, 0)), numbers)]
    for kind, (accepted, refused) in sorted(counts.items()):
        terminalreporter.write_line(f"fuzzed {kind:10} {accepted:9,} accepted {refused:9,} refused")


PEOPLE = (
    "Ada",
    "Bo",
    "Cy",
    "Dora",
    "Eli",
    "Fay",
    "Gus",
    "Hal",
    "Ida",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Noa",
    "Oda",
    "Pia",
)
TOWNS = ("Oslo", "Lima", "Kyoto", "Cork", "Graz", "Bern", "Turku")


def make_rows(people: tuple[str, ...]) -> list[dict[str, str]]:
    """Prompt/completion rows of different lengths, one a person."""
    return [
        {
            "prompt": f"Question: Where does {name} live?\nAnswer:",
            "completion": f" {name} lives in {TOWNS[i % 7]}{' near the old harbour' * (i % 3)}.",
        }
        for i, name in enumerate(people)
    ]


@pytest.fixture
def forget_rows() -> Dataset:
    """Six prompt/completion rows."""
    return Dataset.from_list(make_rows(PEOPLE[:6]))


@pytest.fixture
def retain_rows() -> Dataset:
    """Ten prompt/completion rows about other people."""
    return Dataset.from_list(make_rows(PEOPLE[6:]))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens with padding and end of sequence, without a chat template."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text for row in make_rows(PEOPLE) for text in row.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer):
    """
    Factory of small Llamas: `tiny_model(seed=0, dtype=torch.float32, **config)`.

    The weights are five times larger than by default, so that gradients differ between layers and rows.
    """

    def build(seed: int = 0, dtype: torch.dtype = torch.float32, **config) -> LlamaForCausalLM:
        config = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
            "initializer_range": 0.1,
            "bos_token_id": None,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "pad_token_id": tiny_tokenizer.pad_token_id,
        } | config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**config)).to(dtype)

    return build


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A Hub on this machine, to which the real client of this process pushes and from which it loads."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub, connected(hub, monkeypatch):
        yield hub
