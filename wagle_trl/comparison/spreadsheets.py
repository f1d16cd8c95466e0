"""The numbers of runs and groups as CSV."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..text import one_line
from .groups import Group
from .interval import Interval
from .runs import Run, runs_of

RUNS_FILE = "runs.csv"
GROUPS_FILE = "groups.csv"
# Beginnings of what a spreadsheet would compute; some also take these signs in full width
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_spreadsheets(lines: Sequence[Run | Group], folder: Path) -> list[Path]:
    """
    Write `runs.csv`, one row per run, and where there are groups `groups.csv`, one row per group.

    Args:
        lines (`list[Run | Group]`): Runs and groups.
        folder (`pathlib.Path`): Existing folder.

    Returns:
        `list[pathlib.Path]`: The files.
    """
    groups = [line for line in lines if isinstance(line, Group)]
    label_of = {run.label: {"group": group.label} for group in groups for run in runs_of([group])}
    runs = [
        {"run": run.label, "folder": str(run.folder), **label_of.get(run.label, {}), **run.numbers()}
        for run in runs_of(lines)
    ]
    files = [_write(runs, folder / RUNS_FILE)]
    if groups:
        rows = [
            {"group": group.label, "seeds": len(group.runs), "runs": " ".join(run.label for run in group.runs)}
            | _flat(group.numbers())
            for group in groups
        ]
        files.append(_write(rows, folder / GROUPS_FILE))
    return files


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Give an interval three columns: the mean under its name, half of the interval's width, and the number of runs."""
    flat = {}
    for name, value in numbers.items():
        if isinstance(value, Interval):
            flat |= {name: value.mean, f"{name}_ci95": value.half, f"{name}_n": value.count}
        else:
            flat[name] = value
    return flat


def _write(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(_cell, names))
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return path


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
