"""Sets that share no row: text that nobody trained on says something only where that is true."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..data.formats import filled_columns
from .membership import HOLDOUT
from .metrics import FORGET

# A set -> the sets whose rows it must not have
_APART = {HOLDOUT: (FORGET, "retain"), "unseen_retain": (FORGET, "retain")}


def check_apart(sets: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """
    A `ValueError` if a row that no model is said to have seen also stands among those that some model did see.

    Args:
        sets (`dict[str, list[dict]]`): Set name -> rows. Rows are the same if what they are made of is, such as
            question and answer; other columns do not matter.
    """
    contents = {name: {_content(row) for row in rows} for name, rows in sets.items()}
    for name, others in _APART.items():
        for other in others:
            if shared := contents.get(name, set()) & contents.get(other, set()):
                raise ValueError(
                    f"{len(shared)} rows of the set '{name}' also stand in the set '{other}', such as "
                    f"{min(shared)[:100]}: give rows that took no part."
                )


def _content(row: Mapping[str, Any]) -> str:
    return json.dumps([row[column] for column in filled_columns(row)])
