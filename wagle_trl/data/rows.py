"""Loading of rows from the Hub, a folder or a file."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from typing_extensions import TypeForm

from ..files.reading import COMPRESSIONS, Schema, read_csv, read_json_lines, read_text
from ..files.schemas import Row
from ..text import one_line, printable
from .formats import row_format


def load_rows(source: str | os.PathLike, split: str = "train", text_field: str = "text") -> Dataset:
    """
    Load a data set whose rows have `prompt`/`completion`, `question`/`answer`, `messages`, `text` or
    `input_ids`/`labels`.

    Args:
        source (`str`): A file, a folder (saved by `Dataset.save_to_disk`, or with data files), or the name of a data set
            on the Hub, where `name:config` selects a configuration. The suffix of a file says what it is: `.jsonl`,
            `.json`, `.csv`, `.tsv` or `.txt` (one row per line), each also compressed (`.gz`, `.bz2`, `.lz4`, `.zst`), or
            `.parquet` or `.arrow`. All columns of `.csv` and `.tsv` are text.
        split (`str`, *optional*, defaults to `"train"`): Split of a folder or of a data set on the Hub.
        text_field (`str`, *optional*, defaults to `"text"`): Column of rows of plain text.
    """
    path = Path(source)
    if path.is_dir():
        dataset = _named(_load_folder(path, split), path)
    elif (read := _reader(path)) is not None:
        if not path.is_file():
            raise FileNotFoundError(f"No such data file: {printable(path)}.")
        dataset = _named(read(path), path)
    elif path.exists():
        raise ValueError(
            f"The suffix of '{printable(path)}' does not say what it holds; expected one of {', '.join(_READERS)}."
        )
    else:
        dataset = _load_from_hub(str(source), split)
    if len(dataset) == 0:
        raise ValueError(f"The data set '{printable(source)}' is empty.")
    row_format(dataset.column_names, str(source), text_field)
    return dataset


def _reader(path: Path) -> Callable[[Path], Dataset] | None:
    """What reads a file of this name; `None` where the suffix says nothing."""
    *_, inner, last = ("", "", *map(str.lower, path.suffixes))
    if last in COMPRESSIONS:
        return None if inner in _BINARY else _READERS.get(inner)
    return _READERS.get(last)


def _load_folder(path: Path, split: str) -> Dataset:
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        return _loaded(str(path), split=split)
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(f"The data set '{path}' has no split '{split}'; it has {', '.join(map(str, dataset))}.")
    return dataset[split]


def _load_from_hub(source: str, split: str) -> Dataset:
    name, _, config = source.partition(":")
    try:
        return _loaded(name, config or None, split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"No data at '{printable(source, 200)}': there is no such file or folder, and the Hub has no data set of this "
            "name, asks for a login, or cannot be reached."
        ) from error


def _loaded(name: str, *options: str | None, split: str) -> Dataset:
    """`datasets.load_dataset`, with one kind of error for data that it cannot read."""
    try:
        return load_dataset(name, *options, split=split)
    except (DatasetNotFoundError, ConnectionError):
        raise
    except Exception as error:  # of damaged files, of any library that reads them
        reason = one_line(error.__cause__ or error, 400)
        raise ValueError(f"Cannot read the data set '{printable(name, 200)}': {reason}") from error


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


def _read_json(path: Path) -> Dataset:
    return to_dataset(read_json_lines(path, Row), path)


def _read_table(path: Path) -> Dataset:
    is_tabbed = ".tsv" in map(str.lower, path.suffixes)
    return to_dataset(read_csv(path, Row, "\t" if is_tabbed else ","), path)


def _read_lines(path: Path) -> Dataset:
    lines = read_text(path).split("\n")  # as in JSON lines
    return Dataset.from_dict({"text": [line.rstrip("\r") for line in lines if line.strip()]})


def _read_arrow(path: Path) -> Dataset:
    """Read columns that know their types. The rows stay in memory: `datasets` would keep a copy in its cache."""
    try:
        if path.suffix.lower() == ".parquet":
            return Dataset(pyarrow.parquet.ParquetFile(path).read())
        with pyarrow.memory_map(str(path)) as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
            return Dataset(reader.read_all())
    except Exception as error:  # the types are those of whoever wrote the file
        raise ValueError(f"{printable(path, 300)} is not readable as columns ({one_line(error, 300)}).") from error


_BINARY = {".parquet": _read_arrow, ".arrow": _read_arrow}
_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_lines,
    **_BINARY,
}
