"""The objective that a command line asks for, and the options that it alone has."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from ..files.reading import read_yaml
from ..objectives.names import OBJECTIVES
from ..text import printable
from ..unlearning.config import UnlearningConfig
from .guess import did_you_mean
from .option_texts import Group
from .parser import config_file

_OPTION = "--objective"


@dataclass
class ObjectiveChoice:
    """
    Option that names the objective.

    Args:
        objective (`str`, *optional*): One of [`~objectives.names.OBJECTIVES`].
    """

    objective: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(OBJECTIVES)}; `wagle unlearn --help` describes them."}
    )


def chosen_objective(argv: Sequence[str], command: str | None = None, others: Iterable[str] = ()) -> str | None:
    """
    Find the objective before the options are parsed, as it decides which there are. The command line wins over its file.

    Args:
        argv (`list[str]`): Arguments after the command.
        command (`str`, *optional*): Objective that the command itself names; another one beside it raises a `ValueError`.
        others (iterable of `str`, *optional*): What may stand in place of an objective.

    Returns:
        `str`: Name of the objective, or `None` if none is asked for.
    """
    file, arguments = config_file(argv)
    asked = _named(arguments)
    if asked is None and file is not None and os.path.isfile(file):
        asked = read_yaml(file).get("objective")
    names = [*OBJECTIVES, *others]
    for name in (asked, command):
        if name is not None and name not in names:
            advice = did_you_mean(str(name).lower(), names) or f"; expected one of {', '.join(names)}."
            raise ValueError(f"There is no objective '{printable(name, 100)}'{advice}")
    if None not in (asked, command) and asked != command:
        place = printable(file, 200) if _named(arguments) is None else _OPTION
        raise ValueError(f"The command names the objective {command}, and {place} names {asked}; name one of them.")
    return asked or command


def _named(arguments: Sequence[str]) -> str | None:
    """Value of the last `--objective`, as argparse takes it."""
    found = None
    for argument, value in zip(arguments, [*arguments[1:], None]):
        if argument == _OPTION:
            found = value
        elif argument.startswith(f"{_OPTION}="):
            found = argument.partition("=")[2]
    return found


def own_options(objective: str) -> Group:
    """What the options are for that an objective adds to those of all, or that it has another default of."""
    common = {option.name: option.default for option in fields(UnlearningConfig)}
    return {
        f"--{option.name}": f"{option.metadata['help'].removesuffix('.')} (default: {option.default})."
        for option in fields(OBJECTIVES[objective].config_class)
        if option.name not in common or option.default != common[option.name]
    }


def options_elsewhere() -> Mapping[str, Sequence[str]]:
    """The objectives that have each option that not all of them have."""
    common, owners = {option.name for option in fields(UnlearningConfig)}, defaultdict(list)
    for name, trainer in OBJECTIVES.items():
        for option in fields(trainer.config_class):
            if option.name not in common:
                owners[option.name].append(name)
    return owners
