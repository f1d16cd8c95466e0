"""Forward passes and generation over many rows: padded batches, scores of answer tokens, greedy answers.

Only answer tokens are ever scored, in fp32. No result depends on the size of the batches beyond the rounding of the
model's own dtype, which is visible in bf16.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import IGNORED, num_scored, prompt_token_ids

# A token that cannot occur has the weight 0, and 0 times an infinite logarithm is NaN
LOWEST_LOG_PROB = -1e4
# Below it the rounding of the numerator decides; OpenUnlearning's value
_LOWEST_VARIANCE = 1e-6

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
    """Sequences as one tensor of shape `(num_sequences, max_length)`, filled with `value` on `side`."""
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def model_inputs(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, side: str) -> dict:
    """Arguments of a forward pass or a generation: padded ids and their mask, on the model's device."""
    input_ids = pad(sequences, pad_token_id, side)
    attention_mask = pad([[1] * len(sequence) for sequence in sequences], 0, side)
    return {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token to pad with: it is neither attended to nor scored, so one that means something will do."""
    token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return token_id  # pyright: ignore[reportReturnType]


# Scores of answers


class AnswerScores(NamedTuple):
    """
    What a model says about an answer, token by token, each given the tokens before it.

    Attributes:
        log_probs (`list[float]`): Log-probability of every answer token, in nats.
        z_scores (`list[float]`): The same in standard deviations from its mean over the vocabulary,
            [`token_scores`].
        correct (`list[bool]`): Whether the token is the most likely one.
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
    Logits and labels of the answer tokens of every row, from one forward pass.

    Rows come one at a time and without their prompts, as the fp32 copy is an evaluation's largest tensor.

    Yields:
        `tuple[torch.Tensor, torch.Tensor]`: fp32 logits of shape `(num_tokens, vocab_size)` and labels of shape
        `(num_tokens,)`.
    """
    inputs = model_inputs(model, [row["input_ids"] for row in batch], pad_token_id, "right")
    logits = model(**inputs, use_cache=False).logits
    for row_logits, row in zip(logits, batch, strict=True):
        labels = torch.tensor(row["labels"][1:], device=logits.device)
        scored = labels != IGNORED
        yield row_logits[: len(labels)][scored].float(), labels[scored]


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    Log-probability, z-score and correctness of every token.

    With \\( p \\) the distribution over the vocabulary at a token \\( x \\), its z-score is that of Min-K%++
    (https://huggingface.co/papers/2404.02936): \\( (\log p(x) - \mu) / \sigma \\), where
    \\( \mu = \sum_v p(v) \log p(v) \\) and \\( \sigma^2 = \sum_v p(v) (\log p(v) - \mu)^2 \\).

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`): fp32 logits.
        labels (`torch.Tensor` of shape `(num_tokens,)`): Token ids.

    Returns:
        `torch.Tensor` of shape `(3, num_tokens)`: Log-probabilities in nats, z-scores, and `1.0` where the label has
        the largest logit.
    """
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(-1, labels[:, None]).squeeze(-1)
    log_probs = log_probs.clamp(min=LOWEST_LOG_PROB)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean[:, None]).square()).sum(-1)
    z_scores = (own - mean) / variance.clamp(min=_LOWEST_VARIANCE).sqrt()
    return torch.stack([own, z_scores, (logits.argmax(-1) == labels).float()])


def answer_scores(
    model: PreTrainedModel,
    tokenized_rows: Sequence[Tokenized],
    batch_size: int,
    pad_token_id: int,
    *,
    progress: bool = False,
) -> list[AnswerScores]:
    """
    [`AnswerScores`] of every row. The log-softmax is in fp32, and the batch size does not matter.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenized_rows (`list[dict]`): Rows with `input_ids` and `labels`, as from [`~wagle_trl.data.tokenization.tokenize_row`].
        batch_size (`int`): Rows in a forward pass.
        pad_token_id (`int`): Token to pad with. It is neither attended to nor scored.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[AnswerScores]`: In the order of the rows.
    """
    counts = [num_scored(row["labels"]) for row in tokenized_rows]
    if 0 in counts:
        raise ValueError(f"Row {counts.index(0)} has no answer tokens: all its labels after the first are {IGNORED}.")
    scores: dict[int, AnswerScores] = {}
    lengths = [len(row["input_ids"]) for row in tokenized_rows]
    with inference(model):
        for indices in batches(lengths, batch_size, "Scoring answers", progress):
            rows = answer_logits(model, [tokenized_rows[i] for i in indices], pad_token_id)
            values = torch.cat([token_scores(*row) for row in rows], dim=1)
            for i, part in zip(indices, values.cpu().split([counts[i] for i in indices], dim=1), strict=True):
                log_probs, z_scores, correct = part.tolist()
                scores[i] = AnswerScores(log_probs, z_scores, [flag == 1.0 for flag in correct])
    if bad := sum(not math.isfinite(score.loss) for score in scores.values()):
        raise ValueError(f"{bad} of {len(scores)} answers have a NaN or infinite loss: the model may have diverged.")
    return [scores[i] for i in range(len(counts))]


def answer_losses(
    model: PreTrainedModel,
    tokenized_rows: Sequence[Tokenized],
    batch_size: int,
    pad_token_id: int,
    *,
    progress: bool = False,
) -> tuple[list[float], list[int]]:
    """
    Mean cross-entropy of every row's answer: [`answer_scores`] in two numbers, with the same arguments.

    Returns:
        `tuple[list[float], list[int]]`: Mean loss in nats per token, and number of answer tokens, in the order of the
        rows.
    """
    scores = answer_scores(model, tokenized_rows, batch_size, pad_token_id, progress=progress)
    return [score.loss for score in scores], [len(score.log_probs) for score in scores]


# Generation


def _prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    token_ids = [part for part in prompt if isinstance(part, int)]  # none of a text or messages
    ids = token_ids or prompt_token_ids({"prompt": prompt}, tokenizer)
    if not ids:
        raise ValueError("A prompt is empty: there is nothing to answer.")
    return ids


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a generation: those of the tokenizer and of the model, ascending."""
    stops = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
    return sorted({token_id for token_id in found if isinstance(token_id, int)})


def _greedy_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    # What is not named here comes from the model's own `generation_config.json`
    greedy = dict(do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=None, use_cache=True)
    return greedy | dict(eos_token_id=stop_token_ids(model, tokenizer), pad_token_id=padding_token_id(tokenizer))


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
            output = model.generate(**inputs, **options, max_new_tokens=max_new_tokens)  # pyright: ignore[reportCallIssue]
            continuations = output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(indices, tokenizer.batch_decode(continuations, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
    return answers
