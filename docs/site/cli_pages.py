"""The reference of the command line, made from the parsers and the short help of the commands."""

import contextlib
import io
import re
from argparse import Action
from collections.abc import Mapping
from unittest.mock import patch

import mkdocs_gen_files

from wagle_trl.cli.help import HELP
from wagle_trl.cli.main import COMMANDS, main
from wagle_trl.cli.objectives import own_options
from wagle_trl.cli.option_texts import OBJECTIVES
from wagle_trl.cli.parser import WagleParser

FOLDER = "reference/cli"


def pages() -> None:
    usage = io.StringIO()
    with contextlib.redirect_stdout(usage):
        main(["--help"])
    overview = ["# Command line", "", "```text", usage.getvalue().rstrip(), "```", ""]
    overview += ["| command | |", "| --- | --- |"]
    overview += [f"| [`wagle {name}`]({name}.md) | {cell(about)} |" for name, (_, about) in COMMANDS.items()]
    write("index.md", "\n".join(overview))
    for name in COMMANDS:
        write(f"{name}.md", page(name))
    contents = ["* [Overview](index.md)", *(f"* [{name}]({name}.md)" for name in COMMANDS)]
    write("SUMMARY.md", "\n".join(contents))


def page(command: str) -> str:
    """Markdown of a command: an example, the options that most runs need, and all."""
    about = HELP[command]
    lines = [f"# wagle {command}", "", f"{COMMANDS[command][1]}.", ""]
    lines += ["```bash", f"wagle {command} {about.example}".rstrip(), "```", ""]
    for title, group in about.groups.items():
        if group is not OBJECTIVES:
            lines += [f"## {title.capitalize()}", "", *texts(group), ""]
    if command == "unlearn":
        lines += ["## Objectives", "", "What each adds to the options of all, or has another default of.", ""]
        for name, text in OBJECTIVES.items():
            own = own_options(name)
            lines += [f"### {name}", "", f"{text.rstrip('.')}.", "", *(texts(own) if own else []), ""]
    if not about.is_complete:
        lines += ["## All options", "", "| option | default | |", "| --- | --- | --- |"]
        lines += rows(parser_of(command))
    return "\n".join(lines)


def parser_of(command: str) -> WagleParser:
    """The parser that `wagle COMMAND --help-all` shows."""
    found = []
    with (
        patch.object(WagleParser, "print_help", lambda parser, *others: found.append(parser)),
        contextlib.suppress(SystemExit),
    ):
        main([command, "--help-all"])
    return found[0]


def texts(group: Mapping[str, str]) -> list[str]:
    return ["| option | |", "| --- | --- |", *(f"| `{name}` | {cell(text)} |" for name, text in group.items())]


def rows(parser: WagleParser) -> list[str]:
    """A line per option; one that is switched off by another name has one line with it."""
    found: dict[str, list[Action]] = {}
    for action in parser._actions:
        if action.dest != "help":
            found.setdefault(action.dest, []).append(action)
    return [row(*actions) for actions in found.values()]


def row(action: Action, *switches_off: Action) -> str:
    names = [name for one in (action, *switches_off) for name in one.option_strings if "-" not in name[2:]]
    shown = ", ".join(f"`{name}`" for name in names) or f"`{action.metavar}`"
    default = "" if action.default in (None, []) else f"`{action.default}`"
    text = (action.help or "").replace("%%", "%")
    choices = [str(choice) for choice in action.choices or ()]
    if not all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices):
        text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| {shown} | {cell(default)} | {cell(text)} |"


def cell(text: str) -> str:
    """Text of others in a table: on one line, and nothing in it taken for markup but code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    parts[::2] = [part.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*") for part in parts[::2]]
    return "".join(parts).replace("|", "\\|")


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(f"{FOLDER}/{name}", "w") as file:
        file.write(text + "\n")


pages()
