"""Options from the command line and from YAML files, as in TRL, but safe against files of strangers."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import TrlParser

from ..files.reading import read_yaml, short_value
from ..text import printable
from .guess import did_you_mean

_OPTION = "--config"
_LENIENT = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
_YES = {"yes", "true", "t", "y", "1"}  # as on the command line


class WagleParser(TrlParser):
    """
    `TrlParser` that raises on bad usage, so that the user sees one line instead of two hundred options. From files it
    takes options only, no environment variables. An error says which objectives an option is of, by `elsewhere`.
    """

    elsewhere: Mapping[str, Sequence[str]] = {}

    if TYPE_CHECKING:  # transformers declares another type of class

        def __init__(self, dataclass_types: Sequence[type], **options: Any) -> None: ...

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")

    def parse_args_and_config(self, args: Sequence[str], *others, **options) -> tuple[Any, ...]:
        file, args = config_file(args)
        self._check_names(args)
        if file is None:
            return super().parse_args_and_config(args, *others, **options)
        given = self._read_options(file)
        try:
            self.set_defaults_with_config(**given)
            return super().parse_args_and_config(args, *others, **options)
        except Exception as error:  # a dataclass may raise anything for values that a command line cannot have
            raise ValueError(f"With the options of {printable(file, 200)}: {printable(error, 500)}") from error

    def parse_args_into_dataclasses(self, args: Sequence[str], *others, **options) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *parsed, rest = super().parse_args_into_dataclasses(args, return_remaining_strings=True)
        if rest:  # options of other names are refused before, so these are values
            self.error(f"'{printable(rest[0], 100)}' belongs to no option")
        return (*parsed,)

    def _check_names(self, args: Sequence[str]) -> None:
        """Refuse options that do not exist before argparse names those that are missing."""
        known = self._option_string_actions
        for argument in args:
            name = argument.partition("=")[0]
            if name.startswith("--") and len(name) > 2 and " " not in name and name not in known:
                self.error(f"there is no option {printable(name, 100)}{self._guess(name[2:], '--')}")

    def _guess(self, name: str, prefix: str) -> str:
        name = name.replace("-", "_")
        if name in self.elsewhere:
            return f"; it is an option of {', '.join(self.elsewhere[name])}"
        names = [option[2:] for option in self._option_string_actions if "-" not in option[2:]]
        return did_you_mean(name, names, prefix)

    def _read_options(self, file: str) -> dict[str, Any]:
        place = printable(file, 200)
        if not os.path.isfile(file):
            raise ValueError(f"No such YAML file: {place}.")
        options = read_yaml(file)
        if "env" in options:
            names = ", ".join(options["env"]) if isinstance(options["env"], dict) else options["env"]
            raise ValueError(
                f"{place}: 'env' would set environment variables ({printable(names, 200)}), which decide where tokens are "
                f"sent and what runs. Remove it; set what you trust in the shell, as in `NAME=value {self.prog} ...`."
            )
        known = {action.dest: action for action in self._actions}
        for name in options:
            if name not in known:
                self.error(f"{place}: there is no option '{printable(name, 100)}'{self._guess(name, '')}")
        kinds = {name: kind for source in self.dataclass_types for name, kind in get_type_hints(source).items()}
        for name, value in options.items():
            if name in kinds and not isinstance(value, str) and not _has_type(kinds[name], value):
                raise ValueError(f"{place}: '{name}' cannot be {short_value(value)} (see `{self.prog} --help`).")
            _check_choices(name, value, [str(choice) for choice in known[name].choices or ()], place)
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


def _check_choices(name: str, value: Any, choices: Sequence[str], place: str) -> None:
    """Refuse a text of a file that is none of the choices, which argparse checks on the command line alone."""
    for given in value if isinstance(value, list) else [value]:
        if choices and isinstance(given, str) and given not in choices:
            advice = did_you_mean(given, choices) or f"; expected one of {', '.join(choices)}."
            raise ValueError(f"{place}: '{name}' cannot be {short_value(given)}{advice}")


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


def parse(
    dataclass_types: list[type],
    argv: list[str],
    command: str,
    elsewhere: Mapping[str, Sequence[str]] | None = None,
    **defaults,
) -> tuple[Any, ...]:
    """
    Parse options from a YAML file (`--config`) and the command line, which wins.

    Args:
        dataclass_types (`list[type]`): What the options are, and what is returned.
        argv (`list[str]`): Arguments after the command.
        command (`str`): The command, as it is shown.
        elsewhere (`dict[str, list[str]]`, *optional*): Objectives that have each option that this one may lack.
        defaults (`Any`): Other defaults than those of the dataclasses.
    """
    parser = WagleParser(dataclass_types, prog=f"wagle {command}", allow_abbrev=False)
    parser.elsewhere = elsewhere or {}
    parser.set_defaults(**defaults)
    return parser.parse_args_and_config(argv)


def given_options(argv: Sequence[str], parsed: Sequence[Any]) -> dict[str, Any]:
    """
    Collect the options that the user gave, in the file or on the command line, as they were parsed; no tokens.

    Args:
        argv (`list[str]`): Arguments after the command.
        parsed (`list`): The dataclasses whose options are collected.
    """
    names = [argument[2:].partition("=")[0] for argument in argv if argument.startswith("--")]
    path, _ = config_file(argv)
    if path is not None:
        names = [*read_yaml(path), *names]
    names = [name.replace("-", "_").removeprefix("no_") for name in names]
    values = {name: getattr(group, name) for group in parsed for name in names if hasattr(group, name)}
    values = {name: value for name, value in values.items() if not name.endswith("hub_token")}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
