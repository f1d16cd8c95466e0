"""The reference of the command line, made from the parsers and the short help of the commands."""

import contextlib
import io
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
        lines += [row(action) for action in parser_of(command)._actions if action.dest != "help"]
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


def row(action: Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings if "-" not in name[2:]) or f"`{action.metavar}`"
    default = "" if action.default is None else f"`{action.default}`"
    text = (action.help or "").replace("%%", "%")
    choices = f" One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    return f"| {names} | {cell(default)} | {cell(text + choices)} |"


def cell(text: str) -> str:
    """Text of others in a table: on one line, and nothing in it taken for markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*")


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(f"{FOLDER}/{name}", "w") as file:
        file.write(text + "\n")


pages()
