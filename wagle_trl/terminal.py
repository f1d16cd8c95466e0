"""The terminal, to which text of others means nothing: neither its own commands nor rich's."""

import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from .text import printable

_WIDTH = 120  # where nobody looks, or only later
_LONGEST = 10_000  # of a line: commands to copy, and lists of files, are long


class Terminal(Console):
    """
    A console that shows text as it is, by [`~text.printable`]; only rich's own objects have a style.

    Args:
        file (`IO[str]`, *optional*): Where to print; by default stdout.
        **options: As of [`~rich.console.Console`].
    """

    def __init__(self, file: IO[str] | None = None, **options: Any):
        options = {"width": None if (file or sys.stdout).isatty() else _WIDTH} | options
        super().__init__(file=file, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text, line by line, and what rich can render."""
        super().print(*(self._as_text(x) if isinstance(x, str) else x for x in objects), **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a table, such as a cell."""
        return super().render_str(printable(text), **options)

    def _as_text(self, lines: str) -> Text:
        return self.highlighter("\n".join(printable(line, _LONGEST) for line in lines.split("\n")))
