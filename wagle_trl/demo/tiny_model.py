"""A Llama small enough to learn a few hundred rows by heart in twenty seconds on two CPU cores."""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import ProgressCallback
from trl import SFTConfig, SFTTrainer

from ..data.formats import to_prompt_completion

PAD, EOS = "<pad>", "</s>"
MAX_LENGTH = 64


def build_tokenizer(
    texts: list[str], vocab_size: int = 2048, *, split_digits: bool = False
) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer on the texts.

    Encoding and decoding leave any text unchanged. No token spans a space, so the tokens of `"Answer:"` are a prefix of
    those of `"Answer: In"`.

    Args:
        texts (`list[str]`):
            Texts whose words become tokens.
        vocab_size (`int`, *optional*, defaults to `2048`):
            Largest number of tokens.
        split_digits (`bool`, *optional*, defaults to `False`):
            Whether every digit is a token of its own. Otherwise the numbers in the texts become tokens like words.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Tokenizer with `</s>` as end of sequence and `<pad>` as padding.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if split_digits
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """
    Build an untrained Llama in float32, by default of about 650,000 weights, 525,000 of them in its two blocks.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer that fixes the vocabulary size and the special tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state of torch is left as it was.
        **config:
            Values of [`~transformers.LlamaConfig`] that differ from the defaults here.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The untrained model.
    """
    defaults = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
    }
    special_tokens = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), dtype="float32", **special_tokens, **defaults | config)
        )


class _LabelledBar(ProgressCallback):
    """Progress bar with a description, without logs."""

    def __init__(self, description: str):
        super().__init__()
        self.description = description

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:  # only the main process draws one
            self.training_bar.set_description(self.description)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The parent class prints logs to stdout, which is for the results of the demo
        pass


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, str]],
    *,
    epochs: float = 40,
    learning_rate: float = 2e-3,
    batch_size: int = 16,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    description: str = "Training",
) -> SFTTrainer:
    """
    Train the model on the rows until it knows them by heart, with TRL's own trainer and the loss on the answers only.

    Args:
        model ([`~transformers.LlamaForCausalLM`]):
            Model to train in place.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Its tokenizer.
        rows (`list[dict[str, str]]`):
            Rows with a `question` and an `answer`.
        epochs (`float`, *optional*, defaults to `40`):
            Number of times that every row is seen.
        learning_rate (`float`, *optional*, defaults to `2e-3`):
            Peak of the cosine schedule.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per step.
        max_length (`int`, *optional*, defaults to `64`):
            Longest row, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of the rows.
        description (`str`, *optional*, defaults to `"Training"`):
            Label of the progress bar.

    Returns:
        [`~trl.SFTTrainer`]: The trainer after training. Its model is `model`, in evaluation mode.
    """
    dataset = Dataset.from_list([to_prompt_completion(row, tokenizer) for row in rows])
    with tempfile.TemporaryDirectory() as output_dir:  # the trainer needs a folder, but saves nothing in it
        args = SFTConfig(
            output_dir=output_dir,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            per_device_train_batch_size=batch_size,
            max_length=max_length,
            packing=False,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,  # warns on machines without an accelerator
            disable_tqdm=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_LabelledBar(description))
        trainer.train()
    model.eval()
    return trainer
