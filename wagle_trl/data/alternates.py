"""Other answers to forget rows: refusals from a file or a column of alternates, and which of them an epoch takes."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from ..files.reading import COMPRESSIONS, read_json_lines, read_text, short_value
from ..text import printable
from .formats import Processing, with_answer, with_template_options

logger = logging.get_logger(__name__)

ALTERNATE = "alternate"  # column of rows: another answer, or a list of them
_STREAM = 2  # beside those of the order of forget and retain rows


# Files of refusals


def load_refusals(path: str | Path) -> list[str]:
    """
    Load refusals, one per line.

    Args:
        path (`str` or `pathlib.Path`): Text in UTF-8, whose blank lines are skipped. A `.csv` file has one column, with or
            without a name of one word. A `.jsonl` or `.json` file holds plain lines, JSON strings, or objects with one
            column of text. All may be compressed.

    Returns:
        `list[str]`: Refusals, in the order of the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file of refusals: {printable(path, 300)}.")
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    text = read_text(path)
    if "\0" in text:
        raise ValueError(f"{printable(path, 300)} is no text: it holds zero bytes; give one refusal per line.")
    match kinds[-1:]:
        case [".csv"]:
            lines = _cells(text, path)
        case [".jsonl" | ".json" | ".ndjson"] if text.lstrip().startswith(("{", '"', "[")):
            lines = _json_texts(path)
        case _:
            lines = text.splitlines()
    refusals = [line.strip() for line in lines if line.strip()]
    if not refusals:
        raise ValueError(f"{printable(path, 300)} holds no refusal; write one per line.")
    return refusals


def _cells(text: str, path: Path) -> list[str]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    cells = []
    try:
        for row in reader:
            if len(row) > 1:
                raise ValueError(
                    f"{printable(path, 300)}, line {reader.line_num}: refusals are one column, and here are {len(row)}; put "
                    "texts with commas in quotes."
                )
            cells += row
    except csv.Error as error:
        place = f"{printable(path, 300)}, line {reader.line_num}"
        raise ValueError(f"{place} is not readable as a table ({error}).") from error
    return cells[1:] if cells and cells[0].strip().isidentifier() else cells


def _json_texts(path: Path) -> list[str]:
    texts = []
    for number, value in enumerate(read_json_lines(path, Any)):
        columns = list(value.values()) if isinstance(value, Mapping) else [value]
        if len(columns) != 1 or not isinstance(columns[0], str):
            raise ValueError(
                f"{printable(path, 300)}: refusal {number} should be text, or an object with one column of text, got "
                f"{short_value(value)}."
            )
        texts += columns
    return texts


# Choice


def choose(num_choices: int, seed: int, row: int, epoch: int) -> int:
    """
    Choose one of several answers: a pure function, so that a run that resumes goes on as it began.

    The epochs of a row walk through all its choices before one repeats, from a start that differs per row.

    Args:
        num_choices (`int`): Number of choices.
        seed (`int`): Seed of the run.
        row (`int`): Index of the row.
        epoch (`int`): Epoch, from 0.

    Returns:
        `int`: Index of the choice.
    """
    start = int(np.random.SeedSequence((seed, _STREAM, row)).generate_state(1, np.uint64)[0])
    return (start + epoch) % num_choices


def num_alternates(rows: Dataset, refusals: list[str] | None = None) -> int:
    """Largest number of other answers that a row has: after as many epochs all rows repeat."""
    if ALTERNATE not in rows.column_names:
        return len(refusals or ())
    return max(len(value) if isinstance(value, list) else 1 for value in rows[ALTERNATE])


# Rows


def alternate_rows(
    rows: Dataset,
    refusals: list[str] | None,
    seed: int,
    per_row: int,
    tokenizer: Processing,
    text_field: str = "text",
    name: str = "forget",
) -> Dataset:
    """
    Give rows other answers, asked in the same way.

    The answers of a row come from its column `alternate`, a text or a list of texts, or else from `refusals`. Rows with
    fewer than `per_row` answers repeat them.

    Args:
        rows ([`~datasets.Dataset`]): Rows with a prompt, in any text format of [`~data.formats.row_format`].
        refusals (`list[str]`, *optional*): Answers for rows without a column `alternate`.
        seed (`int`): Seed of the choice, see [`choose`].
        per_row (`int`): Answers per row, one for each epoch.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): The model's.
        text_field (`str`, *optional*, defaults to `"text"`): Column of plain text, which has no prompt and is refused.
        name (`str`, *optional*, defaults to `"forget"`): What messages call the set.

    Returns:
        [`~datasets.Dataset`]: Prompt and completion. Row `i * per_row + e` is row `i` with the answer of epoch `e`.
    """
    if ALTERNATE not in rows.column_names and not refusals:
        raise ValueError(
            f"The {name} set has no other answers to learn: give --refusals FILE or a column '{ALTERNATE}'; wagle alternates "
            "makes one."
        )
    if ALTERNATE in rows.column_names and refusals:
        logger.warning(f"The {name} set has a column '{ALTERNATE}', so the refusals are not used.")
    found = []
    for index, row in enumerate(rows):
        try:
            example = prompted(row, tokenizer, text_field)  # pyright: ignore[reportArgumentType]
            answers = _answers(row, refusals, example["completion"])  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"Row {index} of the {name} set cannot be used. {error}") from error
        chosen = [answers[choose(len(answers), seed, index, epoch)] for epoch in range(per_row)]
        found += [with_answer(example, answer) for answer in chosen]
    return Dataset.from_list(found)


def prompted(row: Mapping[str, Any], tokenizer: Processing, text_field: str = "text") -> dict[str, Any]:
    """A row as [`~data.formats.with_template_options`], or a `ValueError` if it has no prompt."""
    example = with_template_options(row, tokenizer, text_field)
    if not example["prompt"] or (isinstance(example["prompt"], str) and not example["prompt"].strip()):
        raise ValueError(
            "It is text without a prompt, to which there is no other answer; give prompt/completion or question/answer."
        )
    return example


def answer_text(completion: str | list[dict[str, Any]]) -> str:
    """What is answered: the text, or that of the last message, without white space around it."""
    return (completion if isinstance(completion, str) else completion[-1]["content"]).strip()


def _answers(row: Mapping[str, Any], refusals: list[str] | None, completion: str | list[dict[str, Any]]) -> list[str]:
    answers = row.get(ALTERNATE, refusals)
    answers = answers if isinstance(answers, list) else [answers]
    if not answers:
        raise ValueError(f"Its {ALTERNATE} is an empty list; give it another answer, or remove the row.")
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"Its {ALTERNATE} is {printable(repr(answer), 100)}; it should be text, or a list of texts."
            )
        if answer.strip() == answer_text(completion):
            raise ValueError(
                f"Its {ALTERNATE} is its own answer: {printable(repr(answer), 200)}; give it another one."
            )
    return answers
