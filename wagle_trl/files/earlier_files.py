"""What an earlier run left in a folder, when the files of another take their places there."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..text import printable
from .manifest import Manifest
from .model_files import MODEL_FILES, is_like
from .reading import read_json
from .run_folder import (
    ATTACKS_FOLDER,
    CARD_FILE,
    DELTA_FILE,
    EVALUATION_FILE,
    GENERATED_CARD_FILE,
    MASK_FILE,
    PLOT_FILE,
    RECORDS_FILE,
)

logger = logging.get_logger(__name__)

_ASIDE = "set_aside"
# What would be taken for a part of a run that is saved beside it
_TAKEN_FOR_ITS_OWN = (*MODEL_FILES, "pytorch_model*", "adapter_model.*", MASK_FILE, DELTA_FILE)
_DRAWN = {PLOT_FILE, CARD_FILE, GENERATED_CARD_FILE}  # made again from the others


@dataclass(frozen=True)
class EarlierFiles:
    """
    Files in a folder that a new save has no others for.

    Args:
        kept (`set[str]`): Of the save before; the weights are the same.
        gone (`set[str]`): Of the save before, of other weights: they go when the new files come.
        aside (`dict[str, str]`): Of unknown origin, or made of other weights since: where each of them moves.
    """

    kept: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    aside: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str], fingerprint: str | None) -> "EarlierFiles":
        """
        Look at a folder.

        Args:
            folder (`pathlib.Path`): The folder.
            names (iterable of `str`): The new files.
            fingerprint (`str`, *optional*): That of the new weights.
        """
        names, before = set(names), _manifest(folder)
        others = before.files.keys() - names - {CARD_FILE}
        unchanged = others - before.changed(folder, others).keys()
        is_same = fingerprint is not None and before.fingerprint == fingerprint
        aside = set() if is_same else _taken_for_its_own(folder, names) - unchanged
        aside |= _evaluation_of_others(folder, fingerprint, is_same)
        place = _new_place(folder)
        return cls(
            unchanged - aside if is_same else set(),
            set() if is_same else unchanged - aside,
            {name: f"{place}/{name}" for name in sorted(aside)},
        )

    def say(self, folder: Path) -> None:
        """Name what goes and what moves."""
        gone = sorted(self.gone - _DRAWN)
        said = [f"{', '.join(gone)} of an earlier run removed"] if gone else []
        if self.aside:
            place = Path(next(iter(self.aside.values()))).parts[0]
            said.append(f"{', '.join(self.aside)}, not of these weights, moved to {place}")
        if said:
            logger.warning(printable(f"{folder}: {'; '.join(said)}.", 700))


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.read(folder) or Manifest({})
    except ValueError:  # damaged; the new one takes its place
        return Manifest({})


def _taken_for_its_own(folder: Path, names: set[str]) -> set[str]:
    drawn = set() if MASK_FILE in names else {PLOT_FILE}
    found = {path.name for path in folder.iterdir() if path.is_file()}
    return {name for name in found - names if name in drawn or is_like(name, _TAKEN_FOR_ITS_OWN)}


def _evaluation_of_others(folder: Path, fingerprint: str | None, is_same: bool) -> set[str]:
    """The files of an evaluation, unless that is known to be of these weights."""
    files = [folder / EVALUATION_FILE, folder / RECORDS_FILE, *folder.glob(f"{ATTACKS_FOLDER}/*/{RECORDS_FILE}")]
    found = {path.relative_to(folder).as_posix() for path in files if path.is_file()}
    measured = evaluated_fingerprint(folder)
    return set() if measured == fingerprint or (measured is None and is_same) else found


def evaluated_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the weights, or the adapters, that the evaluation in a folder is of, if it says so."""
    try:
        evaluation = read_json(folder / EVALUATION_FILE, dict[str, Any])
    except (OSError, ValueError):  # none there, or damaged
        return None
    return evaluation.get("adapter_fingerprint", evaluation.get("fingerprint"))


def _new_place(folder: Path) -> str:
    number = 1
    while (folder / f"{_ASIDE}-{number}").exists():
        number += 1
    return f"{_ASIDE}-{number}"
