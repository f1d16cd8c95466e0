"""Reading of untrusted files: content that follows a schema, or an error that names the file, line and field."""

import csv
import io
import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeForm

from ..text import printable

Schema = TypeVar("Schema")

COMPRESSIONS = (".gz", ".bz2", ".lz4", ".zst")
_MAX_DEPTH = 100
_MAX_FIELD = 2**31 - 1  # characters
_MAX_DIGITS = 300  # of a whole number; a float holds no more
_MAX_SHOWN = 80
_MAX_YAML_NODES = 10_000  # an alias counts as all the nodes that it stands for
_MANY_DIGITS = re.compile(f"[0-9]{{{_MAX_DIGITS + 1}}}")
# An escape in JSON: a pair of surrogates is one character, and the group finds half a pair
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
# Descriptions of pydantic's types of errors
_EXPECTED = {
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "string_type": "should be text",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "int_type": "should be a whole number",
    "bool_type": "should be true or false",
}


def read_json(path: str | os.PathLike, schema: TypeForm[Schema]) -> Schema:
    """
    Read a JSON file.

    Args:
        path (`str` or `os.PathLike`): File. A `ValueError` names it and the field that does not follow the schema.
        schema (`type`): A `TypedDict`, or any other type that `pydantic` validates. Keys that it does not name are kept.
    """
    return parse_json(read_text(path), schema, path)


def read_json_lines(path: str | os.PathLike, schema: TypeForm[Schema]) -> list[Schema]:
    """
    Read a file with one JSON value per line, where blank lines are skipped, or with one JSON list.

    Args:
        path (`str` or `os.PathLike`): As in [`read_json`].
        schema (`type`): Schema of each value.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return parse_json(text, list[schema], path)  # pyright: ignore[reportInvalidTypeForm]
    lines = enumerate(text.split("\n"), 1)  # not `splitlines`: JSON strings may hold U+2028
    return [parse_json(line, schema, path, number) for number, line in lines if line.strip()]


def read_csv(path: str | os.PathLike, schema: TypeForm[Schema], delimiter: str = ",") -> list[Schema]:
    """
    Read a table whose first line names the columns. All values are text, as they stand: no number loses its zeros, and
    "NA" stays what it is.

    Args:
        path (`str` or `os.PathLike`): As in [`read_json`].
        schema (`type`): Schema of each row.
        delimiter (`str`, *optional*, defaults to `","`): What separates the columns.
    """
    csv.field_size_limit(_MAX_FIELD)  # that of the library is 128 KB: documents are longer
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[Any] = []
    try:
        names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if len(names) == 1 and ";" in names[0]:
            raise ValueError(f"{_place(path, 1)}: the columns are separated by ';'; separate them by ','.")
        if len(set(names)) < len(names):
            raise ValueError(f"{_place(path, 1)}: two columns have one name.")
        for row in reader:
            place = _place(path, reader.line_num)
            if None in row or None in row.values():
                raise ValueError(f"{place}: the row has not the {len(names)} columns that the first line names.")
            rows.append(validated(row, schema, place))
    except csv.Error as error:
        raise ValueError(f"{_place(path, reader.reader.line_num)} is not readable as a table ({error}).") from error
    return rows


def read_text(path: str | os.PathLike) -> str:
    """Read text in UTF-8, with or without a byte order mark, and compressed if the suffix says so."""
    if Path(path).suffix.lower() in COMPRESSIONS:
        import pyarrow  # late: most files are not compressed

        try:
            content = pyarrow.input_stream(os.fspath(path)).read()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{_place(path)} cannot be decompressed ({printable(error, 200)}).") from error
    else:
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{_place(path, line)} is not text in UTF-8 (byte {error.start}).") from error


def parse_json(text: str, schema: TypeForm[Schema], path: str | os.PathLike, line: int | None = None) -> Schema:
    """
    Parse a JSON text.

    Args:
        text (`str`): Text.
        schema (`type`): As in [`read_json`].
        path (`str` or `os.PathLike`): File of the text, for errors.
        line (`int`, *optional*): Number of the line of the text, if it is one line.
    """
    start = line or 1
    try:
        content = json.loads(text, parse_int=_bounded_int if _MANY_DIGITS.search(text) else None)
        if text.count("[") + text.count("{") > _MAX_DEPTH or r"\u0000" in text:
            _check_depth_and_names(content)
    except json.JSONDecodeError as error:
        place = _place(path, start + error.lineno - 1)
        raise ValueError(f"{place} is not readable as JSON ({error.msg}); it is damaged or hostile.") from error
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{_place(path, line)} is not readable as JSON ({reason}); it is damaged or hostile."
        ) from error
    for escape in _ESCAPE.finditer(text) if r"\u" in text else ():
        if escape[1]:
            number = start + text.count("\n", 0, escape.start())
            raise ValueError(f"{_place(path, number)}: {escape[0]} is half a character, which cannot be written.")
    return validated(content, schema, _place(path, line))


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _check_depth_and_names(content: Any) -> None:
    level = [[content]]
    for _ in range(_MAX_DEPTH):
        inner = (value for part in level for value in (part.values() if isinstance(part, dict) else part))
        level = [value for value in inner if isinstance(value, dict | list)]
        if any("\0" in name for part in level if isinstance(part, dict) for name in part):
            raise ValueError("a name holds a zero byte")  # where pyarrow would end it
    if level:
        raise RecursionError


def validated(content: Schema, schema: TypeForm[Schema], where: str) -> Schema:
    """Return `content` if it follows `schema`, or raise a `ValueError` that begins with `where` and names the field."""
    try:
        _adapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        expected = _EXPECTED.get(first["type"], printable(first["msg"].replace("Input should", "should"), 200))
        what = "is missing" if first["type"] == "missing" else f"{expected}, got {short_value(first['input'])}"
        raise ValueError(f"{where}: {_field(first['loc'])} {what}.") from error
    return content


@cache
def _adapter(schema: TypeForm[Schema]) -> TypeAdapter[Schema]:
    return TypeAdapter(schema)


def _field(location: tuple[str | int, ...]) -> str:
    """Format the location of a field, such as `'log_history[3].step'`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]"]
    return f"'{printable(''.join(parts).removeprefix('.'), _MAX_SHOWN)}'" if parts else "the content"


def short_value(value: Any) -> str:
    """Describe a value in a few words."""
    kind = {dict: "an object", list: "a list"}.get(type(value))
    return kind or printable(json.dumps(value, default=str), _MAX_SHOWN)


def _place(path: str | os.PathLike, line: int | None = None) -> str:
    name = printable(os.fspath(path), 300)
    return name if line is None else f"{name}, line {line}"


# YAML

_TEXT_TAG = "tag:yaml.org,2002:str"
# Errors of PyYAML for values that do not have the type of their tag
_BAD_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, yaml.YAMLError)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read a YAML file that maps names to values; an empty file is an empty mapping. Dates are text.

    Args:
        path (`str` or `os.PathLike`): File. A `ValueError` names it and the line if it holds something else.
    """
    text = read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node() or yaml.MappingNode("", [])
        if not isinstance(root, yaml.MappingNode):
            raise ValueError("it holds no mapping of names to values, such as `learning_rate: 1e-5`")
        if _size(root, {}) > _MAX_YAML_NODES:
            raise ValueError(f"it stands for more than {_MAX_YAML_NODES:,} values")
        keys = [key for key, _ in root.value]
        loader.flatten_mapping(root)  # resolves `<<`
    except _BAD_VALUES as error:
        raise _not_yaml(error, path, _line(error, text)) from error
    names = set()
    for key in keys:
        if (name := key.value if key.tag == _TEXT_TAG else None) in names:
            place = _place(path, key.start_mark.line + 1)
            raise ValueError(f"{place}: '{printable(name, _MAX_SHOWN)}' appears twice.")
        names |= {name} - {None}
    return {_name(key, path): _value(loader, value, path, key.start_mark.line + 1) for key, value in root.value}


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Count the values that a node stands for, without visiting each; infinite for a node that contains itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in nodes)
    return sizes[id(node)]


def _name(key: yaml.Node, path: str | os.PathLike) -> str:
    if key.tag != _TEXT_TAG:
        place = _place(path, key.start_mark.line + 1)
        raise ValueError(f"{place}: a name of an option should be text, got {printable(key.value, _MAX_SHOWN)}.")
    return key.value


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: str | os.PathLike, line: int) -> Any:
    try:
        text = json.dumps(loader.construct_object(node, deep=True), default=str)
    except _BAD_VALUES as error:
        raise _not_yaml(error, path, line) from error
    return parse_json(text, Any, path, line)


def _not_yaml(error: Exception, path: str | os.PathLike, line: int | None) -> ValueError:
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    text = "it nests too deep" if isinstance(error, RecursionError) else printable(reason, 200)
    return ValueError(f"{_place(path, line)} is not readable as options in YAML ({text}).")


def _line(error: Exception, text: str) -> int | None:
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1
    mark = getattr(error, "problem_mark", None)
    return mark and mark.line + 1
