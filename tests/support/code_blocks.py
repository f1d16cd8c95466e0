"""Code blocks of Markdown pages, run as a reader would type them, in one folder and from top to bottom."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from wagle_trl.cli.main import main

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|file): (?P<about>.*?) -->\n+)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
SHOWN = ("text", "json", "bibtex", "csv")  # what commands print, and what files hold


class Block(NamedTuple):
    """
    Code block of a page.

    Attributes:
        language (`str`): What follows the fence.
        text (`str`): The code.
        line (`int`): Line of the page at which it begins.
        mark (`str` or `None`): `"not run"` or `"file"`, from a comment before the block, such as `<!-- file: npo.yaml -->`.
        about (`str` or `None`): The reason, or the name of the file.
    """

    language: str
    text: str
    line: int
    mark: str | None
    about: str | None


def blocks(page: Path) -> list[Block]:
    """Find the code blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["language"],
            re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            text.count("\n", 0, match.start("language")) + 2,
            match["mark"],
            match["about"],
        )
        for match in _BLOCK.finditer(text)
    ]


def run(page: Path) -> None:
    """Run the blocks of a page in the working directory: commands, Python in one namespace, and files to write."""
    names = {"__name__": "__main__"}
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        if block.mark == "file":
            assert block.about
            Path(block.about).write_text(block.text, encoding="utf-8")
        elif block.mark is None and block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
        elif block.mark is None and block.language == "bash":
            for command in commands(block.text):
                assert command[0] == "wagle", (
                    f"{place}: only `wagle` runs here; mark the block with why not: {command}"
                )
                assert main(command[1:]) == 0, f"{place}: {shlex.join(command)}"
        else:
            assert block.mark or block.language in SHOWN, f"{place}: nothing runs a block of '{block.language}'"


def commands(text: str) -> list[list[str]]:
    """Split lines of a shell into commands and their words, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
