"""Loading of rows from the Hub, a folder or a file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from typing_extensions import TypeForm

from ..files.reading import Schema, read_json_lines
from ..files.schemas import Row
from ..text import printable
from .formats import row_format


def load_rows(source: str | os.PathLike, split: str = "train") -> Dataset:
    """
    Load a data set whose rows have `prompt`/`completion`, `question`/`answer`, `messages`, `text` or
    `input_ids`/`labels`.

    Args:
        source (`str`): A `.jsonl` or `.json` file, a folder (saved by `Dataset.save_to_disk`, or with data files), or
            the name of a data set on the Hub, where `name:config` selects a configuration.
        split (`str`, *optional*, defaults to `"train"`): Split of a folder or of a data set on the Hub.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".json"):
        dataset = to_dataset(read_jsonl(path, Row), path)
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
        raise ValueError(f"The data set '{path}' has no split '{split}'; it has {', '.join(map(str, dataset))}.")
    return dataset[split]


def _named(dataset: Dataset, path: Path) -> Dataset:
    """Name a data set after its file or folder. Its `info` keeps the name through `map` and `filter`."""
    dataset.info.dataset_name = path.resolve().name
    return dataset


def to_dataset(rows: Sequence[Mapping[str, Any]], path: Path) -> Dataset:
    """Make a data set with the columns of all rows; `Dataset.from_list` keeps only those of the first row."""
    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        return _named(Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}), path)
    except (pyarrow.ArrowException, LookupError, OverflowError, TypeError, ValueError) as error:
        reason = printable(error, 200)  # such as text in a column of numbers
        raise ValueError(f"{printable(path)}: its rows do not form a data set ({reason}).") from error


def read_jsonl(path: str | os.PathLike, schema: TypeForm[Schema] = dict[str, Any]) -> list[Schema]:
    """Read rows from JSON lines or a JSON list, see [`~files.reading.read_json_lines`]; errors name the line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such data file: {printable(path)}.")
    return read_json_lines(path, schema)
