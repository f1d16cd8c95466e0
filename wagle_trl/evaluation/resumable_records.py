"""Records of unfinished work, so that an interrupted evaluation or tuning continues where it stopped."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..files.atomic import atomic_path, translate_disk_errors
from ..files.reading import parse_json
from ..files.schemas import PartialRecord
from ..text import printable

logger = logging.get_logger(__name__)


class PartialRecords:
    """
    A file of JSON lines that grows with the work. Its first line is a key; the records of a file with another key
    are dropped, or refused.

    Args:
        path (`str` or `pathlib.Path`): The file; its folder must exist.
        key (`str`): Hash of everything that the records depend on.
        schema (`type`, *optional*, defaults to [`~files.schemas.PartialRecord`]): Schema of a record.
        refuse_others (`bool`, *optional*, defaults to `False`):
            Whether records with another key raise a `ValueError`.

    Attributes:
        records (`list[dict]`): Records that the file held, then the appended ones.
    """

    def __init__(self, path: str | os.PathLike, key: str, schema: Any = PartialRecord, *, refuse_others: bool = False):
        self.path = Path(path)
        content = self.path.read_bytes() if self.path.exists() else b""
        head, *lines = content.split(b"\n")[:-1] or [b""]  # what follows the last line end was cut off
        if lines and head + b"\n" != _json_lines([{"key": key}]).encode():
            if refuse_others:
                raise ValueError(
                    f"{printable(self.path, 300)} is of another model, other rows or other options; give the same ones to go on, "
                    "or choose another --output_dir."
                )
            logger.warning(f"{printable(self.path)}: {len(lines)} records of another evaluation dropped.")
            lines = []
        self.records: list[Mapping[str, Any]] = list(_valid_records(lines, self.path, schema))
        if damaged := len(lines) - len(self.records):
            logger.warning(f"{printable(self.path)}: {damaged} damaged records dropped, they are computed again.")
        with atomic_path(self.path) as temporary:  # ends with a whole line, so that more can be appended
            temporary.write_text(_json_lines([{"key": key}, *self.records]), encoding="utf-8")

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records to the file, so that they survive this process."""
        records = list(records)
        with translate_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_json_lines(records))
        self.records += records


def _json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _valid_records(lines: Iterable[bytes], path: Path, schema: Any) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 2):
        with suppress(ValueError):
            record = parse_json(line.decode("ascii"), schema, path, number)
            _json_lines([record])  # raises a `ValueError` for a record that could not be written again
            yield record
