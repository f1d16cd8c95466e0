"""Records of an evaluation that is not finished, so that an interrupted one goes on where it stopped."""

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
    A file of JSON lines that grows with the evaluation. Its first line says what is evaluated: the records of
    something else are dropped.

    Args:
        path (`str` or `pathlib.Path`): The file; its folder must exist.
        key (`str`): What is evaluated, as a hash of everything that the records depend on.

    Attributes:
        records (`list[dict]`): Records found in the file, then those appended.
    """

    def __init__(self, path: str | os.PathLike, key: str):
        self.path = Path(path)
        head, *lines = _whole_lines(self.path) or [b""]
        if lines and head + b"\n" != _lines([{"key": key}]).encode():
            logger.warning(f"{printable(self.path)}: {len(lines)} records of another evaluation dropped.")
            lines = []
        self.records: list[Mapping[str, Any]] = list(_readable(lines, self.path))
        if damaged := len(lines) - len(self.records):
            logger.warning(f"{printable(self.path)}: {damaged} damaged records dropped, they are evaluated again.")
        with atomic_path(self.path) as temporary:  # without what was cut off, so that lines can be appended
            temporary.write_text(_lines([{"key": key}, *self.records]), encoding="utf-8")

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, safe from an end of this process."""
        records = list(records)
        with translate_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(records))
        self.records += records


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of a file, without what was cut off at its end; none if it is not there."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _readable(lines: Iterable[bytes], path: Path) -> Iterator[PartialRecord]:
    for number, line in enumerate(lines, 2):
        with suppress(ValueError):
            record = parse_json(line.decode("ascii"), PartialRecord, path, number)
            _lines([record])  # as it will be written again
            yield record
