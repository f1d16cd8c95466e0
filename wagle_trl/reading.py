"""Files that others may have written: read as what they should hold, or refused in a line that names file, line and field."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Schema = TypeVar("Schema")
_MAX_SHOWN = 80


def read_json(path: str | os.PathLike, schema: type[Schema]) -> Schema:
    """
    Content of a JSON file.

    Args:
        path (`str` or `os.PathLike`): The file; a `ValueError` that names it and the field if it holds something else.
        schema (`type`): What it should hold: a `TypedDict`, or any other type that `pydantic` checks. Keys that it does
            not name stay.
    """
    return checked(parsed_json(read_text(path), str(path)), schema, str(path))


def read_json_lines(path: str | os.PathLike, schema: type[Schema]) -> list[Schema]:
    """Content of a file with a JSON object a line; blank lines are skipped. Arguments and errors as of [`read_json`]."""
    return [checked(parsed_json(line, where), schema, where) for where, line in _lines(path)]


def _lines(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not `splitlines`: JSON strings may hold U+2028
        if line.strip():
            yield f"{path}, line {number}", line


def read_text(path: str | os.PathLike) -> str:
    """Text in UTF-8, with or without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}).") from error


def parsed_json(text: str, where: str) -> Any:
    """The value of a JSON text."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written, or shown
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "numbers, text or nesting beyond bounds"
        raise ValueError(f"{where} is not readable as JSON ({reason}); it is damaged or hostile.") from error
    return value


def checked(content: Any, schema: type[Schema], where: str) -> Schema:
    """`content` if it is as `schema` says, or a `ValueError` that begins with `where` and names the field."""
    try:
        return _adapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = f", field {'.'.join(map(str, first['loc']))!r:.{_MAX_SHOWN}}" if first["loc"] else ""
        raise ValueError(f"{where}{place}: {first['msg']:.200}, got {_shown(first['input'])}.") from error


@cache
def _adapter(schema: type[Schema]) -> TypeAdapter[Schema]:
    return TypeAdapter(schema)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
