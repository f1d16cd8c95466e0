"""From a row in any format to prompt and completion."""

import copy
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import maybe_convert_to_chatml  # pyright: ignore[reportPrivateImportUsage]

from ..text import printable

Processing = PreTrainedTokenizerBase | ProcessorMixin

# `datasets` stores the results of `map` by a hash of its arguments. Of an imported function it hashes the name, not what it
# does, so the versions of the packages go with the arguments
VERSIONS = {name: version(name) for name in ("wagle-trl", "transformers", "trl")}

_CONVERSATIONS = ("prompt", "completion", "messages", "conversations")  # columns that may hold messages
_ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT, which templates do not know


def row_format(columns: list[str], source: str, text_field: str = "text") -> tuple[str, ...]:
    """The columns that hold the content, or a `ValueError` that lists what is understood."""
    for names in _row_formats(text_field):
        if set(names) <= set(columns):
            return names
    understood = ", ".join("/".join(names) for names in _row_formats(text_field))
    given = printable(", ".join(columns), 200) or "none"
    raise ValueError(f"'{printable(source)}' has columns {given}; expected {understood} (labels are optional).")


def _row_formats(text_field: str) -> list[tuple[str, ...]]:
    pairs = [("prompt", "completion"), ("question", "answer")]
    return [("input_ids",), ("messages",), ("conversations",), *pairs, (text_field,)]


def filled_columns(row: Mapping[str, Any], text_field: str = "text") -> tuple[str, ...]:
    """The format of a row; `datasets` fills the columns that a row lacks with null, so that the first with values counts."""
    filled = [name for name, value in row.items() if value is not None]
    if any(set(names) <= set(filled) for names in _row_formats(text_field)):
        return row_format(filled, "the row", text_field)
    return row_format(list(row), "the row", text_field)


def to_prompt_completion(row: Mapping[str, Any], tokenizer: Processing) -> dict[str, Any]:
    """
    Convert a question/answer row to prompt and completion.

    With a chat template both are lists of messages. Without one they are plain text `Question: ...\\nAnswer: ...`.
    """
    for name in ("question", "answer"):
        _require_text(row, name)
    if tokenizer.chat_template:
        return {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}


def _require_text(row: Mapping[str, Any], name: str) -> None:
    """The column must hold text that is not blank: formatted into a template, a null would be trained on as "None"."""
    value = row[name]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"Its {name} is {printable(value, 100)}, which is no text; write it as text, in quotes.")
    if not (value or "").strip():
        raise ValueError(f"It has no {name}: {printable(dict(row), 200)}; remove it or fill it in.")


def to_trl(dataset: Dataset, tokenizer: Processing, text_field: str = "text") -> Dataset:
    """
    `dataset` in a form that `SFTTrainer` trains on: questions and answers become prompt/completion, conversations have roles
    and text, others stay.
    """
    if row_format(dataset.column_names, "the data set", text_field) == ("question", "answer"):
        convert, removed, options = to_prompt_completion, dataset.column_names, {"tokenizer": tokenizer}
    elif any(with_messages(row) != dict(row) for row in dataset):  # pyright: ignore[reportArgumentType]
        convert, removed, options = with_messages, ["conversations"], {}
    else:
        return dataset
    removed = [name for name in removed if name in dataset.column_names]
    name = printable(dataset.info.dataset_name or "The data set")
    return map_rows(dataset, convert, name, options, removed, "Formatting")


def map_rows(
    dataset,
    function,
    name: str,
    options: dict[str, Any],
    removed: list[str] | None,
    description: str,
    num_proc: int | None = None,
):
    """
    `dataset.map` in which a `ValueError` names the row.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows.
        function (callable): From a row to columns.
        name (`str`): What messages call the data set.
        options (`dict`): More arguments of `function`.
        removed (`list[str]`): Columns to remove.
        description (`str`): Of the progress bar, where there is a length.
        num_proc (`int`, *optional*): Processes, where there is a length.
    """

    def convert(row, index, versions):
        try:
            return function(row, **options)
        except ValueError as error:
            raise ValueError(f"Row {index} of {name} cannot be used. {error}") from error

    shown: dict[str, Any] = {"desc": description, "num_proc": num_proc} if isinstance(dataset, Dataset) else {}
    versions = {"versions": VERSIONS}
    return dataset.map(convert, with_indices=True, fn_kwargs=versions, remove_columns=removed, **shown)


def with_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A row whose conversations are lists of `role` and `content`, which is text.

    `from`/`value` and `conversations` are renamed, ShareGPT's roles too, parts of text are joined, and a message that only
    calls a tool has the text "". A `ValueError` for images and other parts that are no text.
    """
    for name in ("messages", "conversations"):
        if row.get(name) is not None and not isinstance(row[name], list):
            raise ValueError(f"Its {name} is {printable(repr(row[name]), 100)}, which is no list of messages.")
    lists = {name: row[name] for name in _CONVERSATIONS if isinstance(row.get(name), list)}
    if not lists:
        return dict(row)
    converted = maybe_convert_to_chatml({**row, **copy.deepcopy(lists)})
    for name in ("prompt", "completion", "messages"):
        if isinstance(converted.get(name), list):
            converted[name] = [_plain_message(message, name) for message in converted[name]]
    return converted


def _plain_message(message: Any, column: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"Its {column} has a message without a role: {printable(message, 200)}.")
    content = message.get("content")
    if content is None and message.get("role") == "user":
        raise ValueError(f"Its {column} has a message of the user without content: {printable(message, 200)}.")
    content = "" if content is None else content
    _check_tool_calls(message.get("tool_calls"), column)
    if not isinstance(content, str):
        content = "".join(_text_of(part, column) for part in (content if isinstance(content, list) else [content]))
    return without_nulls(message) | {"role": _ROLES.get(message["role"], message["role"]), "content": content}


def _check_tool_calls(calls: Any, column: str) -> None:
    """Refuse tool calls that are no list of named functions."""
    for call in calls if isinstance(calls, list) else [calls] if calls is not None else []:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"Its {column} has a tool call without the name of a function: {printable(call, 200)}.")
    if calls is not None and not isinstance(calls, list):
        raise ValueError(f"Its {column} has tool calls that are no list: {printable(calls, 200)}.")


def without_nulls(value: Any) -> Any:
    """A message or tool without what is null in it: `datasets` gives each the keys of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _text_of(part: Any, column: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ValueError(
            f"Its {column} has content that is no text: {printable(part, 200)}; only text can be unlearned."
        )
    return part["text"]


def split_prompt(row: Mapping[str, Any], tokenizer: Processing, text_field: str = "text") -> dict[str, Any]:
    """
    Convert a row of any text format to prompt and completion. A conversation is split before its last message; plain
    text has an empty prompt.
    """
    row = with_messages(row)
    match filled_columns(row, text_field):
        case ("messages",):
            return split_last_message(row)
        case ("prompt", "completion"):
            return _checked_pair(row)
        case ("question", "answer"):
            return to_prompt_completion(row, tokenizer)
        case ("input_ids",):
            raise ValueError("A tokenized row has no text to split into prompt and completion.")
    _require_text(row, text_field)
    return {"prompt": "", "completion": row[text_field]}


def _checked_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list) and completion:
        if not prompt:
            raise ValueError("Its prompt has no message; it needs a turn before the answer.")
        if others := sorted({message["role"] for message in completion} - {"assistant"}):
            raise ValueError(
                f"Its completion has a message of the role '{printable(others[0], 50)}', which is no answer; move what comes "
                "before the last answer into the prompt."
            )
        _require_answer(completion)
    else:
        _require_text(row, "completion")
        if prompt is None:
            raise ValueError(f"Its prompt is null: {printable(dict(row), 200)}; remove the row or fill it in.")
        if not isinstance(prompt, str):
            raise ValueError(
                f"Prompt and completion must both be text, or both be messages, got {printable(row, 200)}."
            )
    return {"prompt": prompt, "completion": completion}


def split_last_message(row: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation as prompt and completion, its last message, which must be the assistant's."""
    messages = row["messages"]
    if not messages or len(messages) < 2:
        raise ValueError(f"A conversation needs a turn before the answer, got {printable(messages, 200)}.")
    _require_answer(messages)
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def _require_answer(messages: list[dict[str, Any]]) -> None:
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError(
            f"Its last message is of the role '{printable(last['role'], 50)}': the answer must be the assistant's, so end the "
            "conversation there."
        )
    if not last["content"].strip() and not last.get("tool_calls"):
        raise ValueError(f"It has no answer: its last message is {printable(last, 200)}; remove it or fill it in.")


def with_template_options(row: Mapping[str, Any], tokenizer: Processing, text_field: str = "text") -> dict[str, Any]:
    """A row as [`split_prompt`] does, with what its chat template needs."""
    options = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
    return options | split_prompt(row, tokenizer, text_field)


def with_answer(example: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """
    Prompt and completion with another answer.

    A completion of text begins with the white space of the old one, which separates it from the prompt.
    """
    old = example["completion"]
    if isinstance(old, str):
        return {**example, "completion": old[: len(old) - len(old.lstrip())] + answer.lstrip()}
    return {**example, "completion": [{"role": "assistant", "content": answer}]}
