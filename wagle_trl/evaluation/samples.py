"""Rows made ready for evaluation: tokens as in training, the text of question and answer, and other answers beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..data.formats import filled_columns, split_prompt, with_answer, with_template_options
from ..data.tokenization import DEFAULT, IGNORED, RowOptions, cut_tokens, num_scored, tokenize_row, uncut_tokens
from ..text import printable
from .inference import Tokenized
from .secret_format import SecretFormat, parse_format

Row = Mapping[str, Any]


class Secret(NamedTuple):
    """
    Secret in the answer of a row.

    Attributes:
        text (`str`): The secret, from the column `secret`.
        format ([`~wagle_trl.evaluation.secret_format.SecretFormat`]): Its format, from the column `secret_format`.
        example (`dict`): The row as prompt and completion.
    """

    text: str
    format: SecretFormat
    example: Row

    def replaced(self, other: str) -> Row:
        """The row with another secret in the same answer."""
        completion = self.example["completion"]
        if isinstance(completion, str):
            return {**self.example, "completion": completion.replace(self.text, other)}
        *before, last = completion
        return {
            **self.example,
            "completion": [*before, {**last, "content": last["content"].replace(self.text, other)}],
        }


class Sample(NamedTuple):
    """
    A tokenized row with its record.

    Attributes:
        record (`dict`): What is known before the evaluation, which adds the rest: `set`, `index`, `question`, `answer`.
        answers (`list[dict]`): `input_ids` and `labels` of the answer, then, where there are perturbed ones, of the
            paraphrased (if any) and the perturbed.
        has_paraphrase (`bool`): Whether the second of them is a paraphrase.
        prompt (`list[int]`): What to generate an answer from; empty for plain text.
        secret ([`Secret`], *optional*): Secret in the answer.
    """

    record: dict[str, Any]
    answers: list[Tokenized]
    has_paraphrase: bool
    prompt: list[int]
    secret: Secret | None


def _prompt_part(tokenized: Tokenized) -> list[int]:
    answer_start = next(i for i, label in enumerate(tokenized["labels"]) if label != IGNORED)
    return tokenized["input_ids"][:answer_start]


def _question_and_answer(
    row: Row, tokenized: Tokenized, tokenizer: PreTrainedTokenizerBase, options: RowOptions
) -> tuple[str, str]:
    """What is asked and answered, as text; of tokens and tool calls, what they decode to."""
    if row.get("input_ids") is not None:
        asked, answered = None, None
    elif filled_columns(row, options.dataset_text_field) == ("question", "answer"):
        asked, answered = row["question"], row["answer"]
    else:
        example = split_prompt(row, tokenizer, options.dataset_text_field)
        asked, answered = (_last_text(example[name]) for name in ("prompt", "completion"))
    answer = [label for label in tokenized["labels"] if label != IGNORED]
    parts = tokenizer.batch_decode([_prompt_part(tokenized), answer], skip_special_tokens=True)
    return parts[0] if asked is None else asked, answered or parts[1]


def _last_text(value: str | list[dict[str, Any]]) -> str | None:
    """Text, or that of the last message, if it has any."""
    return value if isinstance(value, str) else value[-1]["content"]


def prepare_rows(
    rows: Iterable[Row], set_name: str, tokenizer: PreTrainedTokenizerBase, options: RowOptions = DEFAULT
) -> list[Sample]:
    """The rows of a set as samples, or a `ValueError` that names a row without an answer."""
    samples = []
    for index, row in enumerate(rows):
        try:
            samples.append(_sample(row, {"set": set_name, "index": index}, tokenizer, options))
        except ValueError as error:
            raise ValueError(f"Row {index} of the set '{set_name}' cannot be evaluated. {error}") from error
    if not samples:
        raise ValueError(f"The set '{set_name}' is empty: there is nothing to evaluate.")
    return samples


def _sample(row: Row, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, options: RowOptions) -> Sample:
    uncut = uncut_tokens(row, tokenizer, options)
    tokenized = cut_tokens(uncut, options)
    if num_scored(tokenized["labels"]) == 0:
        given = f"its {num_scored(uncut['labels'])} answer tokens are beyond max_length={options.max_length}"
        raise ValueError(f"It has no answer: {given if tokenized != uncut else f'all its labels are {IGNORED}'}.")
    if cut := num_scored(uncut["labels"]) - num_scored(tokenized["labels"]):
        record["num_token_cut"] = cut
    asked = tokenized
    if options.assistant_only_loss or options.completion_only_loss is False:  # then more than the answer is scored
        answers_alone = replace(RowOptions.of(options), completion_only_loss=None, assistant_only_loss=False)
        asked = tokenize_row(row, tokenizer, answers_alone)
    question, answer = _question_and_answer(row, asked, tokenizer, options)
    if not answer.strip():
        raise ValueError("Its answer is empty.")
    perturbed = _perturbed_answers(row)
    paraphrased = [row["paraphrased_answer"]] if perturbed and row.get("paraphrased_answer") else []
    texts = [*paraphrased, *perturbed]
    example = with_template_options(row, tokenizer, options.dataset_text_field) if texts else {}
    others = [tokenize_row(with_answer(example, text), tokenizer, options) for text in texts]
    record |= {"question": question.strip(), "answer": answer.strip()}
    secret = _secret(row, record["answer"], tokenizer, options)
    return Sample(record, [tokenized, *others], bool(paraphrased), _prompt_part(asked), secret)


def _perturbed_answers(row: Row) -> list[str]:
    perturbed = row.get("perturbed_answer")
    if perturbed is None:  # `datasets` fills a column that a row lacks with None
        return []
    if not isinstance(perturbed, list) or not all(isinstance(text, str) for text in perturbed):
        # In a string, each letter would be an answer
        raise ValueError("Its `perturbed_answer` is not a list of strings.")
    return perturbed


def _secret(row: Row, answer: str, tokenizer: PreTrainedTokenizerBase, options: RowOptions) -> Secret | None:
    """The secret of a row that has a `secret_format`. Messages do not show it."""
    text, pattern = row.get("secret"), row.get("secret_format")
    if pattern is None:
        return None
    if not isinstance(text, str) or not isinstance(pattern, str):
        raise ValueError("Its `secret` or `secret_format` is missing or no text; write both as text, in quotes.")
    secret_format = parse_format(pattern)
    if not secret_format.matches(text):
        raise ValueError(f"Its `secret` does not have the `secret_format` {printable(repr(pattern), 200)}.")
    if text not in answer:
        raise ValueError("Its answer does not hold its `secret`; write the secret as it stands in the answer.")
    if row.get("input_ids") is not None:
        raise ValueError("It is made of tokens, in which no other secret can stand; remove its `secret_format`.")
    return Secret(text, secret_format, with_template_options(row, tokenizer, options.dataset_text_field))
