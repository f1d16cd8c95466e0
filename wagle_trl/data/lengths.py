"""What does not fit: rows longer than `max_length` are cut, split or refused, and what is left of their answers is counted."""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset

from .formats import VERSIONS, map_rows
from .tokenization import IGNORED, RowOptions, cut_tokens, num_scored

LongRows = Literal["refuse", "truncate", "split"]


@dataclass(frozen=True)
class AnswerTokens:
    """
    How much of the answers of a set is scored.

    Args:
        rows (`int`): Rows.
        rows_cut (`int`): Rows whose answers are cut.
        given (`int`): Answer tokens of all rows.
        scored (`int`): Answer tokens that are left where rows are cut.
    """

    rows: int
    rows_cut: int
    given: int
    scored: int

    @classmethod
    def of(cls, given: list[int], scored: list[int]) -> "AnswerTokens":
        """From the numbers of answer tokens of each row, before and after cutting."""
        return cls(len(given), sum(a > b for a, b in zip(given, scored, strict=True)), sum(given), sum(scored))

    def __str__(self) -> str:
        lost = self.given - self.scored
        share = lost / max(self.given, 1)
        return f"{self.rows_cut} of {self.rows} rows are cut, {lost:,} answer tokens ({share:.1%}) are not scored"


def fit_rows(
    dataset: Dataset, options: RowOptions, name: str, long_rows: LongRows, *, drop_empty: bool = False
) -> tuple[Dataset, AnswerTokens]:
    """
    Rows within `options.max_length`, and what is left of their answers.

    Args:
        dataset ([`~datasets.Dataset`]): Tokenized rows, see [`~data.tokenization.tokenize_dataset`].
        options ([`~data.tokenization.RowOptions`]): How long rows may be, and which end is kept.
        name (`str`): What messages call the set.
        long_rows (`str`):
            `"truncate"` cuts longer rows, `"split"` makes several rows of those of which every token is scored and cuts the
            others, and `"refuse"` raises a `ValueError` where an answer would be cut.
        drop_empty (`bool`, *optional*, defaults to `False`):
            Whether to leave out rows of which no token is scored, as TRL does, instead of raising a `ValueError`.
    """
    given = [num_scored(labels) for labels in dataset["labels"]]
    if 0 in given and not drop_empty:
        raise ValueError(f"Row {given.index(0)} of the {name} set has no answer; remove it or give it one.")
    if options.max_length is None:
        return _with_answers(dataset, given), AnswerTokens.of(given, given)
    if long_rows == "split":
        arguments = {"size": options.max_length, "versions": VERSIONS}
        dataset = dataset.map(_split, batched=True, fn_kwargs=arguments, remove_columns=dataset.column_names)
        given = [num_scored(labels) for labels in dataset["labels"]]
    fitting = map_rows(
        dataset, cut_tokens, f"the {name} set", {"options": options}, None, f"Truncating {name} dataset"
    )
    scored = [num_scored(labels) for labels in fitting["labels"]]
    if 0 in scored and not drop_empty:
        raise ValueError(
            f"{scored.count(0)} rows of the {name} set have no answer token left within max_length={options.max_length}; "
            "raise it or shorten the prompts."
        )
    if long_rows == "refuse" and scored != given:
        row = next(i for i, (a, b) in enumerate(zip(given, scored, strict=True)) if a > b)
        raise ValueError(
            f"Row {row} of the {name} set is too long for max_length={options.max_length}: {given[row] - scored[row]} of its "
            f"{given[row]} answer tokens would be cut off and stay in the model. Raise max_length; or set long_rows to 'split' "
            "(rows of plain text) or 'truncate'."
        )
    return _with_answers(fitting, scored), AnswerTokens.of(given, scored)


def _with_answers(dataset: Dataset, scored: list[int]) -> Dataset:
    return dataset.select([i for i, count in enumerate(scored) if count]) if 0 in scored else dataset


def _split(rows: dict[str, list[list[int]]], size: int, versions: dict[str, str]) -> dict[str, list[list[int]]]:
    """
    Cut rows of which every token is scored into several.

    Each begins with the last token of the one before: a first token is not predicted, so that otherwise one would be lost
    at each cut.
    """
    pieces: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        whole = len(ids) <= size or IGNORED in labels or size < 2
        starts = [0] if whole else range(0, len(ids) - 1, size - 1)
        for start in starts:
            end = None if whole else start + size
            pieces["input_ids"].append(ids[start:end])
            pieces["labels"].append(labels[start:end])
    return pieces
