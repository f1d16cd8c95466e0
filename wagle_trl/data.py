"""Rows: loading them from the Hub, a folder or a file, and giving questions and answers the form TRL trains on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length, maybe_convert_to_chatml

from .reading import Schema, read_json_lines
from .schemas import Row
from .text import printable

TOFU_HUB_NAME = "locuslab/TOFU"
TOFU_FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}
TOFU_RETAIN_SPLIT = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
_ROW_FORMATS = (("input_ids",), ("messages",), ("prompt", "completion"), ("question", "answer"), ("text",))
# The date is the one that Llama 3 templates fall back to
_FIXED_CLOCK = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


# Loading


def load_rows(source: str | os.PathLike, split: str = "train") -> Dataset:
    """
    Load a data set whose rows have `prompt`/`completion`, `question`/`answer`, `messages`, `text` or
    `input_ids`/`labels`.

    Args:
        source (`str`): A `.jsonl` or `.json` file, a folder (saved by `Dataset.save_to_disk`, or holding data files),
            or the name of a data set on the Hub; `name:config` picks a configuration.
        split (`str`, *optional*, defaults to `"train"`): Split of a folder or Hub data set.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".json"):
        dataset = _to_dataset(read_jsonl(path, Row), path)
    elif path.is_dir():
        dataset = _named(_load_folder(path, split), path)
    else:
        name, _, config = str(source).partition(":")
        dataset = load_dataset(name, config or None, split=split)
    if len(dataset) == 0:
        raise ValueError(f"The data set '{source}' is empty.")
    row_format(dataset.column_names, str(source))
    return dataset


def _load_folder(path: Path, split: str) -> Dataset:
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        return load_dataset(str(path), split=split)
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(f"The data set '{path}' has no split '{split}'; it has {', '.join(dataset)}.")
    return dataset[split]


def _named(dataset: Dataset, path: Path) -> Dataset:
    """`dataset` with the name of its file or folder, which its `info` keeps through `map` and `filter`."""
    dataset.info.dataset_name = path.resolve().name
    return dataset


def _to_dataset(rows: list[dict[str, Any]], path: Path) -> Dataset:
    """A data set with the columns of all rows: `Dataset.from_list` alone takes those of the first row."""
    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        return _named(Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}), path)
    except (pyarrow.ArrowException, LookupError, OverflowError, TypeError, ValueError) as error:
        reason = printable(error, 200)  # such as text where other rows have numbers
        raise ValueError(f"{printable(path)}: the columns of its rows make no data set ({reason}).") from error


def read_jsonl(path: str | os.PathLike, schema: type[Schema] = dict[str, Any]) -> list[Schema]:
    """Rows of a JSON-lines file (or a JSON list), see [`~reading.read_json_lines`]; a bad line is named."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such data file: {printable(path)}.")
    return read_json_lines(path, schema)


def load_tofu(forget: str = "forget10", tofu_dir: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """
    Forget and retain rows of TOFU (arXiv 2401.06121).

    Args:
        forget (`str`, *optional*, defaults to `"forget10"`): `"forget01"`, `"forget05"` or `"forget10"`.
        tofu_dir (`str`, *optional*): Folder with `full.jsonl` of the Hub's `locuslab/TOFU`; `None` asks the Hub.
    """
    _check_tofu_split(forget)
    if tofu_dir is None:
        return load_rows(f"{TOFU_HUB_NAME}:{forget}"), load_rows(f"{TOFU_HUB_NAME}:{TOFU_RETAIN_SPLIT[forget]}")
    path = Path(tofu_dir) / "full.jsonl"
    rows = read_jsonl(path, Row)
    cut = len(rows) - TOFU_FORGET_ROWS[forget]
    if cut < 1:
        raise ValueError(f"{printable(path)} has {len(rows)} rows, too few for '{forget}' and rows to retain.")
    return _to_dataset(rows[cut:], path), _to_dataset(rows[:cut], path)


def load_tofu_evaluation(
    forget: str = "forget10", tofu_dir: str | os.PathLike | None = None
) -> dict[str, list[dict[str, Any]]]:
    """
    The sets of the TOFU evaluation: set name -> rows. Four come with paraphrased and perturbed answers; `holdout` is
    about authors that no model was trained on.
    """
    _check_tofu_split(forget)
    files = {
        "forget": f"{forget}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": "holdout10",
    }
    if tofu_dir is None:
        return {name: load_rows(f"{TOFU_HUB_NAME}:{config}").to_list() for name, config in files.items()}
    # The smaller forget sets are the last rows of the largest one
    files["forget"] = "forget10_perturbed"
    rows = {name: read_jsonl(Path(tofu_dir) / f"{file}.jsonl", Row) for name, file in files.items()}
    return rows | {"forget": rows["forget"][-TOFU_FORGET_ROWS[forget] :]}


def _check_tofu_split(forget: str) -> None:
    if forget not in TOFU_FORGET_ROWS:
        raise ValueError(f"Unknown TOFU split '{forget}'; expected one of {', '.join(TOFU_FORGET_ROWS)}.")


# Formats


def row_format(columns: list[str], source: str) -> tuple[str, ...]:
    """The columns that hold the content, or a `ValueError` that lists what is understood."""
    for names in _ROW_FORMATS:
        if set(names) <= set(columns):
            return names
    understood = ", ".join("/".join(names) for names in _ROW_FORMATS)
    given = printable(", ".join(columns), 200) or "none"
    raise ValueError(f"'{printable(source)}' has columns {given}; expected {understood} (labels are optional).")


def to_prompt_completion(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    A question/answer row as prompt and completion.

    With a chat template both are message lists, else plain text `Question: ...\\nAnswer: ...`.
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
    """`value` must be text that is not blank: formatted into a template, a null would be trained on as "None"."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"A row has no {name}: {printable(dict(row), 200)}; remove it or fill it in.")


def to_trl(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """`dataset` in a form `SFTTrainer` trains on: question/answer rows become prompt/completion, others stay."""
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
    Any text row as prompt and completion: a conversation is split before its last message, plain text has an empty
    prompt.
    """
    row = maybe_convert_to_chatml(dict(row))
    names = row_format(list(row), "the row")
    if not row[names[-1]] or isinstance(row[names[-1]], str):  # a list of messages may say something without text
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
    """A conversation as prompt and completion, its last message."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def tokenize_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """
    Token ids and labels of a row as `SFTTrainer` makes them with `completion_only_loss`: an end-of-sequence token
    after plain text, `-100` on the prompt.
    """
    if row.get("input_ids") is not None:
        labels = row["input_ids"] if row.get("labels") is None else row["labels"]
        if len(labels) != len(row["input_ids"]) or any(-100 < label < 0 for label in labels):
            raise ValueError("Its labels are not a token or -100 for each of its tokens.")
        return {"input_ids": list(row["input_ids"]), "labels": list(labels)}
    example = split_prompt(row, tokenizer)
    prompt_ids, input_ids = prompt_token_ids(example, tokenizer), _full_token_ids(example, tokenizer)
    start = common_prefix_length(prompt_ids, input_ids)
    return {"input_ids": input_ids, "labels": [-100] * start + input_ids[start:]}


def prompt_token_ids(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt (text, or messages with the generation prompt)."""
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
    A chat template that renders the same text every day.

    Some templates write today's date into the prompt, so that rows tokenized on two days differ, and neither is what
    the model was trained on. A macro shadows the clock with a fixed date. A pinned template stays as it is.
    """
    if chat_template is None or "strftime_now" not in chat_template:
        return chat_template
    return _FIXED_CLOCK + chat_template.removeprefix(_FIXED_CLOCK)
