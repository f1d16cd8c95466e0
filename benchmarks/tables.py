"""Tables of results in Markdown, and where they stand in a document."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trl.files.atomic import atomic_path


def markdown(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """Format a table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def filled(text: str, tables: Mapping[str, str]) -> str:
    """Put each table between its mark and the next `<!-- end -->`."""
    for name, table in tables.items():
        mark = f"<!-- {name} -->"
        text = re.sub(f"{mark}.*?<!-- end -->", f"{mark}\n{table}\n<!-- end -->", text, flags=re.DOTALL)
    return text


def fill(path: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a document."""
    text = filled(path.read_text(encoding="utf-8"), tables)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
