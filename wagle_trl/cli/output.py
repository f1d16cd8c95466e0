"""The result of a command: content for `--json`, tables for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class Output:
    """
    Result of a command.

    Args:
        content (`dict`): Content, printed as one JSON object with `--json`.
        tables (`list`, *optional*): Tables and lines, printed otherwise.
        exit_code (`int`, *optional*, defaults to `0`): Exit code; 1 if a check failed.
    """

    content: dict[str, Any]
    tables: Sequence[Table | str] = field(default_factory=list)
    exit_code: int = 0


class Advice(str):
    """Note on an exception that the command line shows below the error."""


def key_value_table(title: str, content: dict[str, Any]) -> Table:
    """Make a table of two columns, with rounded numbers."""
    table = Table("name", "value", title=title, show_header=False)
    for key, value in content.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
