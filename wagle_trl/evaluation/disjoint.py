"""Check that sets share no row: rows that count as unseen must not be among those that were trained on."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..data.formats import filled_columns
from .membership import HOLDOUT
from .metrics import FORGET

# Set -> sets that it must share no row with
_DISJOINT_SETS = {HOLDOUT: (FORGET, "retain"), "unseen_retain": (FORGET, "retain")}


def check_disjoint(sets: Mapping[str, Iterable[Mapping[str, Any]]], text_field: str = "text") -> None:
    """
    Raise a `ValueError` if an unseen row is also in a set that a model was trained on.

    Args:
        sets (`dict[str, list[dict]]`): Set name -> rows. Rows are the same if the columns of their format are, such as
            question and answer; other columns do not matter.
        text_field (`str`, *optional*, defaults to `"text"`): Column of rows of plain text.
    """
    contents = {name: {_content(row, text_field) for row in rows} for name, rows in sets.items()}
    for name, others in _DISJOINT_SETS.items():
        for other in others:
            if shared := contents.get(name, set()) & contents.get(other, set()):
                raise ValueError(
                    f"{len(shared)} rows of the set '{name}' are also in the set '{other}', such as "
                    f"{min(shared)[:100]}: give rows that no model was trained on."
                )


def _content(row: Mapping[str, Any], text_field: str) -> str:
    return json.dumps([row[column] for column in filled_columns(row, text_field)])
