"""TOFU-style evaluation of a model: rows in, one record per row out.

A record has the keys of the benchmark authors' own logs, so [`~wagle_trl.evaluation.metrics.summarize`] serves both.
Answers are tokenized exactly as in training, and a prompt for generation is the unscored beginning of the same tokens:
the model is judged on the sequences it was trained on.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import read_jsonl, split_prompt, tokenize_row
from ..files import atomic_path
from .metrics import rouge_l_recall, truth_ratio
from .scoring import IGNORED, Tokenized, answer_losses, generate_answers, padding_token_id

Row = Mapping[str, Any]


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
    answer_start = next(i for i, label in enumerate(tokenized["labels"]) if label != IGNORED)
    return tokenized["input_ids"][:answer_start]


def _question_and_answer(row: Row, tokenized: Tokenized, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    if row.get("question") is not None:
        return row["question"], row["answer"]
    if row.get("input_ids") is None:
        example = split_prompt(row, tokenizer)
        return _content(example["prompt"]), _content(example["completion"])
    answer = [label for label in tokenized["labels"] if label != IGNORED]
    return tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (_prompt_part(tokenized), answer))


def _prepare(row: Row, index: int, set_name: str, tokenizer: PreTrainedTokenizerBase) -> _Sample:
    try:
        return _sample(row, {"set": set_name, "index": index}, tokenizer)
    except ValueError as error:
        raise ValueError(f"Row {index} of the set '{set_name}' cannot be evaluated. {error}") from error


def _sample(row: Row, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> _Sample:
    tokenized = tokenize_row(row, tokenizer)
    if all(label == IGNORED for label in tokenized["labels"][1:]):
        raise ValueError(f"It has no answer: all its labels are {IGNORED}.")
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
    scores = zip(*answer_losses(model, flat, batch_size, padding_token_id(tokenizer), progress=progress), strict=True)
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
