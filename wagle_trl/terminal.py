"""A terminal that never interprets text from others: neither as control sequences nor as rich markup."""

import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from .text import printable

_WIDTH = 120  # of output to a file or pipe
_MAX_LINE = 10_000  # commands to copy and lists of files are long


class Terminal(Console):
    """
    Console that makes text [`~text.printable`]; only rich's own objects have a style.

    Args:
        file (`IO[str]`, *optional*): Output file; by default stdout.
        **options: Options of [`~rich.console.Console`].
    """

    def __init__(self, file: IO[str] | None = None, **options: Any):
        options = {"width": None if (file or sys.stdout).isatty() else _WIDTH} | options
        super().__init__(file=file, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text, line by line, and objects that rich can render."""
        shown = []
        for value in objects:
            if isinstance(value, str):
                lines = (printable(line, _MAX_LINE) for line in value.split("\n"))
                value = self.highlighter("\n".join(lines))
            shown.append(value)
        super().print(*shown, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render the text of a table, such as a cell."""
        return super().render_str(printable(text), **options)
