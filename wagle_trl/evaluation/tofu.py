"""TOFU-style evaluation of a model: rows in, one record per row out.

A record has the keys of the benchmark authors' own logs, so [`~wagle_trl.evaluation.metrics.summarize`] serves both.
Answers are tokenized exactly as in training, and a prompt for generation is the unscored beginning of the same tokens:
the model is judged on the sequences it was trained on.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import prompt_token_ids, read_jsonl, split_prompt, tokenize_row
from ..files import atomic_path
from .metrics import rouge_l_recall, truth_ratio

_IGNORED = -100

Row = Mapping[str, Any]
Tokenized = Mapping[str, list[int]]
Prompt = str | list[dict[str, str]] | list[int]


# Batches


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _batches(lengths: Sequence[int], batch_size: int, description: str, progress: bool) -> Iterator[list[int]]:
    # Longest first, so that a batch size that does not fit in memory fails at once
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    with tqdm(total=len(order), desc=description, disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            yield indices
            bar.update(len(indices))


def _pad(sequences: Iterable[Sequence[int]], value: int, side: str) -> torch.Tensor:
    tensors = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def _model_inputs(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, side: str) -> dict:
    input_ids = _pad(sequences, pad_token_id, side)
    attention_mask = _pad([[1] * len(sequence) for sequence in sequences], 0, side)
    return {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


# Losses


def _loss_sums(model: PreTrainedModel, batch: Sequence[Tokenized], pad_token_id: int) -> list[float]:
    logits = model(**_model_inputs(model, [row["input_ids"] for row in batch], pad_token_id, "right"), use_cache=False)
    logits = logits.logits[:, :-1]
    targets = _pad([row["labels"] for row in batch], _IGNORED, "right")[:, 1:].to(logits.device)
    scored = targets != _IGNORED
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
    counts = [sum(label != _IGNORED for label in row["labels"][1:]) for row in tokenized_rows]
    if 0 in counts:
        raise ValueError(f"Row {counts.index(0)} has no answer tokens: all its labels after the first are {_IGNORED}.")
    losses = [math.nan] * len(counts)
    lengths = [len(row["input_ids"]) for row in tokenized_rows]
    with _inference(model):
        for indices in _batches(lengths, batch_size, "Scoring answers", progress):
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
    return greedy | dict(eos_token_id=sorted(stops), pad_token_id=_pad_token_id(tokenizer))


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
    with _inference(model):
        for indices in _batches([len(ids) for ids in prompt_ids], batch_size, "Generating answers", progress):
            inputs = _model_inputs(model, [prompt_ids[i] for i in indices], options["pad_token_id"], "left")
            output = model.generate(**inputs, **options, max_new_tokens=max_new_tokens)
            continuations = output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(indices, tokenizer.batch_decode(continuations, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
    return answers


# Records


class _Sample(NamedTuple):
    record: dict[str, Any]
    answers: list[Tokenized]  # the answer, then, with perturbed ones, the paraphrased (if any) and the perturbed
    has_paraphrase: bool


def _with_answer(row: Row, answer: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    if row.get("question") is not None:
        return {**row, "answer": answer}
    example = split_prompt(row, tokenizer)
    is_text = isinstance(example["completion"], str)
    return {**example, "completion": answer if is_text else [{"role": "assistant", "content": answer}]}


def _content(value: str | list[dict[str, str]]) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


def _prompt_part(tokenized: Tokenized) -> list[int]:
    answer_start = next(i for i, label in enumerate(tokenized["labels"]) if label != _IGNORED)
    return tokenized["input_ids"][:answer_start]


def _question_and_answer(row: Row, tokenized: Tokenized, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    if row.get("question") is not None:
        return row["question"], row["answer"]
    if row.get("input_ids") is None:
        example = split_prompt(row, tokenizer)
        return _content(example["prompt"]), _content(example["completion"])
    answer = [label for label in tokenized["labels"] if label != _IGNORED]
    return tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (_prompt_part(tokenized), answer))


def _prepare(row: Row, index: int, set_name: str, tokenizer: PreTrainedTokenizerBase) -> _Sample:
    try:
        return _sample(row, {"set": set_name, "index": index}, tokenizer)
    except ValueError as error:
        raise ValueError(f"Row {index} of the set '{set_name}' cannot be evaluated. {error}") from error


def _sample(row: Row, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> _Sample:
    tokenized = tokenize_row(row, tokenizer)
    if all(label == _IGNORED for label in tokenized["labels"][1:]):
        raise ValueError(f"It has no answer: all its labels are {_IGNORED}.")
    question, answer = _question_and_answer(row, tokenized, tokenizer)
    if not answer.strip():
        raise ValueError("Its answer is empty.")
    # `datasets` fills a column that a row lacks with None
    perturbed = row.get("perturbed_answer") or []
    paraphrased = [row["paraphrased_answer"]] if perturbed and row.get("paraphrased_answer") else []
    others = [tokenize_row(_with_answer(row, text, tokenizer), tokenizer) for text in [*paraphrased, *perturbed]]
    record |= {"question": question.strip(), "answer": answer.strip()}
    return _Sample(record, [tokenized, *others], bool(paraphrased))


def _loss_fields(scores: Sequence[tuple[float, int]], has_paraphrase: bool) -> dict[str, Any]:
    """Fields of a record from the (mean loss, number of tokens) of a sample's answers."""
    (loss, count), *perturbed = scores
    fields = {"avg_gt_loss": loss, "gt_loss": loss * count, "num_token_gt": count}
    if not perturbed:
        return fields
    # Real authors and world facts have no paraphrase: TOFU's logs repeat the answer
    loss, count = perturbed.pop(0) if has_paraphrase else (loss, count)
    fields |= {"avg_paraphrased_loss": loss, "paraphrased_loss": loss * count, "num_token_paraphrased": count}
    losses, counts = zip(*perturbed, strict=True)
    fields |= {"average_perturb_loss": list(losses), "num_token_perturb": list(counts)}
    return fields | {"perturb_loss": [a * b for a, b in perturbed], "truth_ratio": truth_ratio(loss, losses)}


def evaluate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    set_name: str,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    generate: bool = True,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    One record for every row of a set.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        rows (iterable of `dict`): Rows with `question`/`answer`, `prompt`/`completion`, `messages` (the last one is
            the answer), `text` or `input_ids`/`labels`. A row may bring `perturbed_answer`, a list of wrong answers,
            and `paraphrased_answer`; they are put in place of its answer or completion as they are.
        set_name (`str`): Name of the set. [`~wagle_trl.evaluation.metrics.summarize`] has rules for `forget`,
            `retain`, `real_authors` and `world_facts`.
        batch_size (`int`, *optional*, defaults to `16`): Rows in a forward pass or generation.
        max_new_tokens (`int`, *optional*, defaults to `200`): Longest generated answer.
        generate (`bool`, *optional*, defaults to `True`): Whether to answer every prompt, for ROUGE.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `list[dict]`: Records with the keys of TOFU's own logs, in the order of the rows. All have `set`, `index`,
        `question`, `answer`, `avg_gt_loss` (nats per token), `gt_loss` (their sum) and `num_token_gt`. Rows with
        perturbed answers add the same for these and the paraphrase (without one: the answer), and `truth_ratio`; rows
        with a prompt, where `generate`, add `generated` and `rougeL_recall`.
    """
    samples = [_prepare(row, index, set_name, tokenizer) for index, row in enumerate(rows)]
    if not samples:
        raise ValueError(f"The set '{set_name}' is empty: there is nothing to evaluate.")
    flat = [tokenized for sample in samples for tokenized in sample.answers]
    scores = zip(*answer_losses(model, flat, batch_size, _pad_token_id(tokenizer), progress=progress), strict=True)
    for sample in samples:
        sample.record.update(_loss_fields([next(scores) for _ in sample.answers], sample.has_paraphrase))
    if generate:
        asked = [(sample.record, ids) for sample in samples if (ids := _prompt_part(sample.answers[0]))]
        prompts = [ids for _, ids in asked]
        texts = generate_answers(model, tokenizer, prompts, batch_size, max_new_tokens, progress=progress)
        for (record, _), text in zip(asked, texts, strict=True):
            record.update(generated=text, rougeL_recall=rouge_l_recall(text, record["answer"]))
    return [sample.record for sample in samples]


def write_records(records: Iterable[Row], path: str | os.PathLike) -> Path:
    """Write records as JSON lines, atomically: an interrupted call leaves an earlier file as it was."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
    return Path(path)


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read records that [`write_records`] or the authors of TOFU wrote."""
    return read_jsonl(path)
