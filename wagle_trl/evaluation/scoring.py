"""Forward passes and generation over many rows: padded batches, losses of answers, greedy answers.

Only answer tokens are ever scored, in fp32, and no result depends on the size of the batches.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import prompt_token_ids

IGNORED = -100

Tokenized = Mapping[str, list[int]]
Prompt = str | list[dict[str, str]] | list[int]


# Batches


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def batches(lengths: Sequence[int], batch_size: int, description: str, progress: bool) -> Iterator[list[int]]:
    """Batches of indices, the longest rows first: a batch size that does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    with tqdm(total=len(order), desc=description, disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            yield indices
            bar.update(len(indices))


def pad(sequences: Iterable[Sequence[int]], value: int, side: str) -> torch.Tensor:
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def model_inputs(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, side: str) -> dict:
    input_ids = pad(sequences, pad_token_id, side)
    attention_mask = pad([[1] * len(sequence) for sequence in sequences], 0, side)
    return {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token to pad with: it is neither attended to nor scored, so one that means something will do."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


# Losses


def _loss_sums(model: PreTrainedModel, batch: Sequence[Tokenized], pad_token_id: int) -> list[float]:
    logits = model(**model_inputs(model, [row["input_ids"] for row in batch], pad_token_id, "right"), use_cache=False)
    logits = logits.logits[:, :-1]
    targets = pad([row["labels"] for row in batch], IGNORED, "right")[:, 1:].to(logits.device)
    scored = targets != IGNORED
    # The fp32 copy is an evaluation's largest tensor, so it is made for answer tokens alone
    token_losses = cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    return torch.zeros_like(targets, dtype=torch.float32).masked_scatter(scored, token_losses).sum(dim=1).tolist()


def answer_losses(
    model: PreTrainedModel,
    tokenized_rows: Sequence[Tokenized],
    batch_size: int,
    pad_token_id: int,
    *,
    progress: bool = False,
) -> tuple[list[float], list[int]]:
    """
    Mean cross-entropy of every row's answer. The log-softmax is in fp32, and the batch size does not matter.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenized_rows (`list[dict]`): Rows with `input_ids` and `labels`, as from [`~wagle_trl.data.tokenize_row`].
        batch_size (`int`): Rows in a forward pass.
        pad_token_id (`int`): Token to pad with. It is neither attended to nor scored.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `tuple[list[float], list[int]]`: Mean loss in nats per token, and number of answer tokens, in the order of the
        rows.
    """
    counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in tokenized_rows]
    if 0 in counts:
        raise ValueError(f"Row {counts.index(0)} has no answer tokens: all its labels after the first are {IGNORED}.")
    losses = [math.nan] * len(counts)
    lengths = [len(row["input_ids"]) for row in tokenized_rows]
    with inference(model):
        for indices in batches(lengths, batch_size, "Scoring answers", progress):
            sums = _loss_sums(model, [tokenized_rows[i] for i in indices], pad_token_id)
            for i, total in zip(indices, sums, strict=True):
                losses[i] = total / counts[i]
    if bad := sum(not math.isfinite(loss) for loss in losses):
        raise ValueError(f"{bad} of {len(losses)} answers have a NaN or infinite loss: the model may have diverged.")
    return losses, counts


# Generation


def _prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    is_tokenized = len(prompt) > 0 and isinstance(prompt[0], int)
    ids = list(prompt) if is_tokenized else prompt_token_ids({"prompt": prompt}, tokenizer)
    if not ids:
        raise ValueError("A prompt is empty: there is nothing to answer.")
    return ids


def _greedy_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    stops = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    # What is not named here comes from the model's own `generation_config.json`
    greedy = dict(do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=None, use_cache=True)
    return greedy | dict(eos_token_id=sorted(stops), pad_token_id=padding_token_id(tokenizer))


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_size: int,
    max_new_tokens: int = 200,
    *,
    progress: bool = False,
) -> list[str]:
    """
    Greedy continuation of every prompt, up to an end-of-sequence token of the tokenizer or the model.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        prompts (`list`): Prompts: strings, lists of messages for the chat template, or lists of token ids.
        batch_size (`int`): Prompts generated from at once.
        max_new_tokens (`int`, *optional*, defaults to `200`): Longest continuation. TOFU's value.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[str]`: Continuations, stripped and without special tokens, in the order of the prompts.
    """
    prompt_ids = [_prompt_ids(prompt, tokenizer) for prompt in prompts]
    options = _greedy_options(model, tokenizer)
    answers = [""] * len(prompt_ids)
    with inference(model):
        for indices in batches([len(ids) for ids in prompt_ids], batch_size, "Generating answers", progress):
            inputs = model_inputs(model, [prompt_ids[i] for i in indices], options["pad_token_id"], "left")
            output = model.generate(**inputs, **options, max_new_tokens=max_new_tokens)
            continuations = output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(indices, tokenizer.batch_decode(continuations, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
    return answers
