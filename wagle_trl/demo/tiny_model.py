"""A Llama small enough to learn a few hundred rows by heart within a minute on two CPU cores."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from wagle_trl.data import to_prompt_completion

PAD, EOS = "<pad>", "</s>"
VOCAB_SIZE = 2048
MAX_LENGTH = 64


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """
    Learns a byte-level BPE tokenizer from the texts themselves.

    Any text survives encoding and decoding unchanged, and a token never reaches over a space, so the tokens of
    `"Answer:"` are a prefix of those of `"Answer: In"`.

    Args:
        texts (`list[str]`):
            Texts whose words become tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Tokenizer with `</s>` as end of sequence and `<pad>` as padding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """
    Builds an untrained Llama of about a million weights in float32.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer that fixes the vocabulary size and the special tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state of torch is left as it was.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The untrained model.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH * 4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, str]],
    *,
    epochs: float = 40,
    learning_rate: float = 2e-3,
    batch_size: int = 16,
    seed: int = 0,
    description: str = "Training",
    output_dir: str = "/tmp/scratch/out",
) -> LlamaForCausalLM:
    examples = [to_prompt_completion(row, tokenizer) for row in rows]
    args = SFTConfig(
        output_dir=output_dir,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        per_device_train_batch_size=batch_size,
        max_length=MAX_LENGTH,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="epoch",
        seed=seed,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(examples), processing_class=tokenizer)
    trainer.train()
    return model
