"""Forward passes and generation over many rows: padded batches, likelihoods of answer tokens, answers.

Only answer tokens are evaluated, in fp32. Results depend on the batch size only through the rounding of the model's own
dtype, which is visible in bf16.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import IGNORED, num_scored, padding_token_id, prompt_token_ids
from .sampling import GumbelNoise, Seed

# A token that cannot occur has the weight 0, and 0 times an infinite logarithm is NaN
LOWEST_LOG_PROB = -1e4
# With a lower variance, rounding errors of the numerator would dominate; OpenUnlearning uses the same value
_LOWEST_VARIANCE = 1e-6

Tokenized = Mapping[str, list[int]]
Prompt = str | list[dict[str, str]] | list[int]
Side = Literal["left", "right"]


# Batches


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def batches(lengths: Sequence[int], batch_size: int, description: str, progress: bool) -> Iterator[list[int]]:
    """Batches of indices, longest rows first, so that a batch size that does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    with tqdm(total=len(order), desc=description, disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            yield indices
            bar.update(len(indices))


def pad(sequences: Iterable[Sequence[int]], value: int, side: Side) -> torch.Tensor:
    """Stack sequences in one tensor of shape `(num_sequences, max_length)`, padded with `value` on `side`."""
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def model_inputs(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, side: Side) -> dict:
    """Arguments of a forward pass or a generation: padded ids and their mask, on the model's device."""
    input_ids = pad(sequences, pad_token_id, side)
    attention_mask = pad([[1] * len(sequence) for sequence in sequences], 0, side)
    return {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}


# Likelihoods of answers


class AnswerLikelihood(NamedTuple):
    """
    Likelihood of an answer under a model, token by token, each given the true tokens before it.

    Attributes:
        log_probs (`list[float]`): Log-probability of every answer token, in nats.
        z_scores (`list[float]`): Z-score of every log-probability over the vocabulary, see [`token_likelihoods`].
        correct (`list[bool]`): For every token, whether it is the most likely one.
    """

    log_probs: list[float]
    z_scores: list[float]
    correct: list[bool]

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats per token."""
        return -math.fsum(self.log_probs) / len(self.log_probs)


def answer_logits(
    model: PreTrainedModel, batch: Sequence[Tokenized], pad_token_id: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Compute logits and labels of the answer tokens of every row, in one forward pass.

    Rows are yielded one at a time and without their prompts, because their fp32 copy is the largest tensor of an
    evaluation.

    Yields:
        `tuple[torch.Tensor, torch.Tensor]`: fp32 logits of shape `(num_tokens, vocab_size)` and labels of shape
        `(num_tokens,)`.
    """
    inputs = model_inputs(model, [row["input_ids"] for row in batch], pad_token_id, "right")
    logits = model(**inputs, use_cache=False).logits
    for row_logits, row in zip(logits, batch, strict=True):
        labels = torch.tensor(row["labels"][1:], device=logits.device)
        is_answer = labels != IGNORED
        yield row_logits[: len(labels)][is_answer].float(), labels[is_answer]


def token_likelihoods(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    Compute log-probability, z-score and correctness of every token.

    The z-score is that of Min-K%++ (https://huggingface.co/papers/2404.02936). With \\( p \\) the distribution over the
    vocabulary at a token \\( x \\), it is \\( (\log p(x) - \mu) / \sigma \\), where
    \\( \mu = \sum_v p(v) \log p(v) \\) and \\( \sigma^2 = \sum_v p(v) (\log p(v) - \mu)^2 \\).

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`): fp32 logits.
        labels (`torch.Tensor` of shape `(num_tokens,)`): Token ids.

    Returns:
        `torch.Tensor` of shape `(3, num_tokens)`: Log-probabilities in nats, z-scores, and `1.0` if the label has the
        largest logit, else `0.0`.
    """
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(-1, labels[:, None]).squeeze(-1)
    log_probs = log_probs.clamp(min=LOWEST_LOG_PROB)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean[:, None]).square()).sum(-1)
    z_scores = (own - mean) / variance.clamp(min=_LOWEST_VARIANCE).sqrt()
    return torch.stack([own, z_scores, (logits.argmax(-1) == labels).float()])


def answer_likelihoods(
    model: PreTrainedModel,
    tokenized_rows: Sequence[Tokenized],
    batch_size: int,
    pad_token_id: int,
    *,
    progress: bool = False,
) -> list[AnswerLikelihood]:
    """
    Compute the [`AnswerLikelihood`] of every row. The log-softmax is in fp32, and the batch size does not matter.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenized_rows (`list[dict]`): Rows with `input_ids` and `labels`, as from [`~wagle_trl.data.tokenization.tokenize_row`].
        batch_size (`int`): Rows in a forward pass.
        pad_token_id (`int`): Token to pad with. It is neither attended to nor scored.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[AnswerLikelihood]`: Likelihoods, in the order of the rows.
    """
    counts = [num_scored(row["labels"]) for row in tokenized_rows]
    if 0 in counts:
        raise ValueError(f"Row {counts.index(0)} has no answer tokens: all its labels after the first are {IGNORED}.")
    found: dict[int, AnswerLikelihood] = {}
    lengths = [len(row["input_ids"]) for row in tokenized_rows]
    with inference(model):
        for indices in batches(lengths, batch_size, "Evaluating answers", progress):
            rows = answer_logits(model, [tokenized_rows[i] for i in indices], pad_token_id)
            values = torch.cat([token_likelihoods(*row) for row in rows], dim=1)
            for i, part in zip(indices, values.cpu().split([counts[i] for i in indices], dim=1), strict=True):
                log_probs, z_scores, correct = part.tolist()
                found[i] = AnswerLikelihood(log_probs, z_scores, [flag == 1.0 for flag in correct])
    if bad := sum(not math.isfinite(likelihood.loss) for likelihood in found.values()):
        raise ValueError(f"{bad} of {len(found)} answers have a NaN or infinite loss: the model may have diverged.")
    return [found[i] for i in range(len(counts))]


def answer_losses(
    model: PreTrainedModel,
    tokenized_rows: Sequence[Tokenized],
    batch_size: int,
    pad_token_id: int,
    *,
    progress: bool = False,
) -> tuple[list[float], list[int]]:
    """
    Compute the mean cross-entropy of every row's answer. Arguments are those of [`answer_likelihoods`].

    Returns:
        `tuple[list[float], list[int]]`: Mean losses in nats per token, and numbers of answer tokens, in the order of the
        rows.
    """
    answers = answer_likelihoods(model, tokenized_rows, batch_size, pad_token_id, progress=progress)
    return [answer.loss for answer in answers], [len(answer.log_probs) for answer in answers]


# Generation


def _prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    token_ids = [part for part in prompt if isinstance(part, int)]  # empty for a text or messages
    ids = token_ids or prompt_token_ids({"prompt": prompt}, tokenizer)
    if not ids:
        raise ValueError("A prompt is empty, so there is nothing to answer.")
    return ids


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a generation, for the tokenizer or the model, in ascending order."""
    stops = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
    return sorted({token_id for token_id in found if isinstance(token_id, int)})


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_size: int,
    max_new_tokens: int = 200,
    *,
    progress: bool = False,
    seeds: Sequence[Seed] | None = None,
    temperature: float = 1.0,
    stop_strings: Sequence[str] = (),
) -> list[str]:
    """
    Generate a continuation of every prompt, greedy or sampled, up to an end-of-sequence token of the tokenizer or the model.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        prompts (`list`): Prompts: strings, lists of messages for the chat template, or lists of token ids.
        batch_size (`int`): Prompts per batch.
        max_new_tokens (`int`, *optional*, defaults to `200`): Longest continuation, in tokens. The default is TOFU's.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
        seeds (`list[tuple[int, ...]]`, *optional*): Seed of each continuation, which is then sampled, see
            [`~wagle_trl.evaluation.sampling.GumbelNoise`].
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of sampling.
        stop_strings (`list[str]`, *optional*): Texts that end a continuation and are no part of it.

    Returns:
        `list[str]`: Continuations, stripped and without special tokens, in the order of the prompts.
    """
    prompt_ids = [_prompt_ids(prompt, tokenizer) for prompt in prompts]
    pad_token_id = padding_token_id(tokenizer)
    # Options that are not named here come from the model's own `generation_config.json`
    options: dict[str, Any] = dict(
        do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=None, use_cache=True
    )
    options |= dict(eos_token_id=stop_token_ids(model, tokenizer), pad_token_id=pad_token_id)
    options |= dict(stop_strings=list(stop_strings), tokenizer=tokenizer) if stop_strings else {}
    answers = [""] * len(prompt_ids)
    with inference(model):
        for indices in batches([len(ids) for ids in prompt_ids], batch_size, "Generating answers", progress):
            inputs = model_inputs(model, [prompt_ids[i] for i in indices], pad_token_id, "left")
            if seeds is not None:
                options["logits_processor"] = [GumbelNoise(temperature, [seeds[i] for i in indices])]
            output = model.generate(**inputs, **options, max_new_tokens=max_new_tokens)  # pyright: ignore[reportCallIssue]
            continuations = output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(indices, tokenizer.batch_decode(continuations, skip_special_tokens=True), strict=True):
                end = min((place for stop in stop_strings if (place := text.find(stop)) >= 0), default=None)
                answers[i] = text[:end].strip()
    return answers
