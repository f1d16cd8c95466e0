"""Options from the command line and from YAML files, as in TRL, but safe against files of strangers."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import TrlParser

from ..files.reading import read_yaml, short_value
from ..text import printable

_OPTION = "--config"
_LENIENT = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
_YES = {"yes", "true", "t", "y", "1"}  # as on the command line


class WagleParser(TrlParser):
    """
    `TrlParser` that raises on bad usage, so that the user sees one line instead of two hundred options. From files it
    takes options only, no environment variables.
    """

    if TYPE_CHECKING:  # transformers declares another type of class

        def __init__(self, dataclass_types: Sequence[type], **options: Any) -> None: ...

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")

    def parse_args_and_config(self, args: Sequence[str], *others, **options) -> tuple[Any, ...]:
        file, args = config_file(args)
        if file is None:
            return super().parse_args_and_config(args, *others, **options)
        given = self._read_options(file)
        try:
            unknown = self.set_defaults_with_config(**given)
            if unknown:
                self.error(f"unknown arguments: {' '.join(unknown)}")
            return super().parse_args_and_config(args, *others, **options)
        except Exception as error:  # a dataclass may raise anything for values that a command line cannot have
            raise ValueError(f"With the options of {printable(file, 200)}: {printable(error, 500)}") from error

    def _read_options(self, file: str) -> dict[str, Any]:
        place, options = printable(file, 200), read_yaml(file)
        if "env" in options:
            names = ", ".join(options["env"]) if isinstance(options["env"], dict) else options["env"]
            raise ValueError(
                f"{place}: 'env' would set environment variables ({printable(names, 200)}), which decide where tokens are "
                f"sent and what runs. Remove it; set what you trust in the shell, as in `NAME=value {self.prog} ...`."
            )
        kinds = {name: kind for source in self.dataclass_types for name, kind in get_type_hints(source).items()}
        for name, value in options.items():
            if name in kinds and not isinstance(value, str) and not _has_type(kinds[name], value):
                raise ValueError(f"{place}: '{name}' cannot be {short_value(value)} (see `{self.prog} --help`).")
        if str(options.get("push_to_hub")).lower() in _YES:
            goal = printable(options.get("hub_model_id") or "a repository of yours", 100)
            print(f"{self.prog}: warning: {place} uploads the model to {goal}.", file=sys.stderr)
        for key in _trusted_code_keys(options):
            message = f"{place} sets '{printable(key, 100)}': code that comes with a model will run on this machine."
            print(f"{self.prog}: warning: {message}", file=sys.stderr)
        return options


def config_file(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the command line into the YAML file that it names and the other arguments."""
    args = list(args)
    for place, argument in enumerate(args):
        if argument.startswith(f"{_OPTION}="):
            return argument.partition("=")[2], args[:place] + args[place + 1 :]
        if argument == _OPTION:
            if place + 1 == len(args):
                raise ValueError(f"argument {_OPTION}: expected one argument")
            return args[place + 1], args[:place] + args[place + 2 :]
    return None, args


def _has_type(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind, config=_LENIENT).validate_python(value)
    except ValidationError:
        return False
    return True


def _trusted_code_keys(content: Any, key: str = "") -> Iterator[str]:
    """Find the dotted keys that allow code of others to run. An option may be JSON in a text."""
    if isinstance(content, str) and content.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            content = json.loads(content)
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _trusted_code_keys(value, f"{key}.{name}" if key else str(name))
    elif key.rpartition(".")[2] == "trust_remote_code" and str(content).strip().lower() in _YES:
        yield key


def parse(dataclass_types: list[type], argv: list[str], command: str, **defaults) -> tuple[Any, ...]:
    """Options of `command` from a YAML file (`--config`) and the command line, which wins; others from `defaults`."""
    parser = WagleParser(dataclass_types, prog=f"wagle {command}", allow_abbrev=False)
    parser.set_defaults(**defaults)
    return parser.parse_args_and_config(argv)
