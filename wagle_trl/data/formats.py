"""Conversion of rows in any format to prompt and completion, and to tokens."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length, maybe_convert_to_chatml

from ..text import printable

_ROW_FORMATS = (("input_ids",), ("messages",), ("prompt", "completion"), ("question", "answer"), ("text",))
# The default date of Llama 3 templates
_FIXED_CLOCK = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def row_format(columns: list[str], source: str) -> tuple[str, ...]:
    """Find the columns with the content of rows, or raise a `ValueError` that lists the supported formats."""
    for names in _ROW_FORMATS:
        if set(names) <= set(columns):
            return names
    supported = ", ".join("/".join(names) for names in _ROW_FORMATS)
    given = printable(", ".join(columns), 200) or "none"
    raise ValueError(f"'{printable(source)}' has columns {given}; expected {supported} (labels are optional).")


def to_prompt_completion(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Convert a question/answer row to prompt and completion.

    With a chat template both are lists of messages. Without one they are plain text `Question: ...\\nAnswer: ...`.
    """
    for name in ("question", "answer"):
        _require_text(row[name], name, row)
    if tokenizer.chat_template:
        return {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}


def _require_text(value: Any, name: str, row: Mapping[str, Any]) -> None:
    """Raise a `ValueError` unless `value` is text that is not blank: a template would turn a null into "None"."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"A row has no {name}: {printable(dict(row), 200)}; remove it or fill it in.")


def to_trl(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Convert question/answer rows to prompt/completion rows for `SFTTrainer`; rows of other formats stay."""
    if row_format(dataset.column_names, "the data set") != ("question", "answer"):
        return dataset
    try:
        return dataset.map(
            to_prompt_completion,
            fn_kwargs={"tokenizer": tokenizer},
            remove_columns=dataset.column_names,
            desc="Formatting",
        )
    except ValueError as error:
        raise ValueError(f"{printable(dataset.info.dataset_name or 'The data set')}: {error}") from error


def split_prompt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Convert a row of any text format to prompt and completion. A conversation is split before its last message; plain
    text has an empty prompt.
    """
    row = maybe_convert_to_chatml(dict(row))
    names = row_format(list(row), "the row")
    if not row[names[-1]] or isinstance(row[names[-1]], str):  # a list of messages may have content other than text
        _require_text(row[names[-1]], "answer", row)
    match names:
        case ("messages",):
            if len(row["messages"]) < 2:
                raise ValueError(
                    f"A conversation needs a turn before the answer, got {printable(row['messages'], 200)}."
                )
            return split_last_message(row)
        case ("prompt", "completion"):
            if not isinstance(row["prompt"], type(row["completion"])) or row["prompt"] == []:
                given = printable({name: row[name] for name in names}, 200)
                raise ValueError(f"Prompt and completion must both be text, or both be messages, got {given}.")
            return {"prompt": row["prompt"], "completion": row["completion"]}
        case ("question", "answer"):
            return to_prompt_completion(row, tokenizer)
        case ("text",):
            return {"prompt": "", "completion": row["text"]}
    raise ValueError("A tokenized row has no text to split into prompt and completion.")


def split_last_message(row: Mapping[str, Any]) -> dict[str, Any]:
    """Split a conversation into a prompt and a completion, its last message."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def tokenize_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """
    Compute token ids and labels of a row as `SFTTrainer` does with `completion_only_loss`: an end-of-sequence token
    after plain text, and `-100` on the prompt.
    """
    if row.get("input_ids") is not None:
        labels = row["input_ids"] if row.get("labels") is None else row["labels"]
        if len(labels) != len(row["input_ids"]) or any(-100 < label < 0 for label in labels):
            raise ValueError("Labels must be a token or -100 for each token of the row.")
        return {"input_ids": list(row["input_ids"]), "labels": list(labels)}
    example = split_prompt(row, tokenizer)
    prompt_ids, input_ids = prompt_token_ids(example, tokenizer), _full_token_ids(example, tokenizer)
    start = common_prefix_length(prompt_ids, input_ids)
    return {"input_ids": input_ids, "labels": [-100] * start + input_ids[start:]}


def prompt_token_ids(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Compute the token ids of a prompt: text, or messages followed by the generation prompt."""
    if isinstance(example["prompt"], list):
        return _chat_token_ids(example["prompt"], tokenizer, add_generation_prompt=True)
    return tokenizer(example["prompt"])["input_ids"] if example["prompt"] else []


def _full_token_ids(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(example["prompt"], list):
        return _chat_token_ids(example["prompt"] + example["completion"], tokenizer)
    text = example["prompt"] + example["completion"]
    return tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]


def _chat_token_ids(messages, tokenizer, **kwargs) -> list[int]:
    template = pin_date(tokenizer.chat_template)
    return tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True, **kwargs)["input_ids"]


def pin_date(chat_template: str | None) -> str | None:
    """
    Fix the date of a chat template, so that it renders the same text every day.

    Some templates write today's date into the prompt. Then rows tokenized on two days differ, and neither has the date
    that the model was trained with. A macro replaces the clock by a fixed date. A template with a fixed date stays.
    """
    if chat_template is None or "strftime_now" not in chat_template:
        return chat_template
    return _FIXED_CLOCK + chat_template.removeprefix(_FIXED_CLOCK)
