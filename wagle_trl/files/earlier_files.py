"""Files that an earlier run left in a folder which another run is saved to."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..text import printable
from .manifest import Manifest
from .model_files import MODEL_FILES, matches_any
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

_SET_ASIDE = "set_aside"
# Files that would be mistaken for a part of the run that is saved beside them
_MISTAKABLE = (*MODEL_FILES, "pytorch_model*", "adapter_model.*", MASK_FILE, DELTA_FILE)
_REMADE = {PLOT_FILE, CARD_FILE, GENERATED_CARD_FILE}  # made again from the others


@dataclass(frozen=True)
class EarlierFiles:
    """
    Files in a folder that a new save does not replace.

    Args:
        kept (`set[str]`): Files of an earlier save of the same weights.
        removed (`set[str]`): Files of an earlier save of other weights: removed when the new files move in.
        set_aside (`dict[str, str]`): Files of unknown origin, or of other weights, with the place that each moves to.
    """

    kept: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    set_aside: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str], fingerprint: str | None) -> "EarlierFiles":
        """
        Sort the files of a folder.

        Args:
            folder (`pathlib.Path`): Folder to save to.
            names (iterable of `str`): Names of the new files.
            fingerprint (`str`, *optional*): Fingerprint of the new weights.
        """
        names, before = set(names), _manifest(folder)
        others = before.files.keys() - names - {CARD_FILE}
        unchanged = others - before.changed(folder, others).keys()
        is_same = fingerprint is not None and before.fingerprint == fingerprint
        aside = set() if is_same else _mistakable(folder, names) - unchanged
        aside |= _evaluation_of_others(folder, fingerprint, is_same)
        place = _new_place(folder)
        return cls(
            unchanged - aside if is_same else set(),
            set() if is_same else unchanged - aside,
            {name: f"{place}/{name}" for name in sorted(aside)},
        )

    def warn(self, folder: Path) -> None:
        """Log which files were removed and which moved."""
        removed = sorted(self.removed - _REMADE)
        messages = [f"{', '.join(removed)} of an earlier run removed"] if removed else []
        if self.set_aside:
            place = Path(next(iter(self.set_aside.values()))).parts[0]
            messages.append(f"{', '.join(self.set_aside)}, not of these weights, moved to {place}")
        if messages:
            logger.warning(printable(f"{folder}: {'; '.join(messages)}.", 700))


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.read(folder) or Manifest({})
    except ValueError:  # damaged; the new manifest replaces it
        return Manifest({})


def _mistakable(folder: Path, names: set[str]) -> set[str]:
    pictures = set() if MASK_FILE in names else {PLOT_FILE}
    found = {path.name for path in folder.iterdir() if path.is_file()}
    return {name for name in found - names if name in pictures or matches_any(name, _MISTAKABLE)}


def _evaluation_of_others(folder: Path, fingerprint: str | None, is_same: bool) -> set[str]:
    """List the files of an evaluation, unless it is known to be of these weights."""
    files = [folder / EVALUATION_FILE, folder / RECORDS_FILE, *folder.glob(f"{ATTACKS_FOLDER}/*/{RECORDS_FILE}")]
    found = {path.relative_to(folder).as_posix() for path in files if path.is_file()}
    evaluated = evaluated_fingerprint(folder)
    return set() if evaluated == fingerprint or (evaluated is None and is_same) else found


def evaluated_fingerprint(folder: Path) -> str | None:
    """Read the fingerprint of the weights, or the adapters, that the evaluation in a folder is of; `None` if unknown."""
    try:
        evaluation = read_json(folder / EVALUATION_FILE, dict[str, Any])
    except (OSError, ValueError):  # missing or damaged
        return None
    return evaluation.get("adapter_fingerprint", evaluation.get("fingerprint"))


def _new_place(folder: Path) -> str:
    number = 1
    while (folder / f"{_SET_ASIDE}-{number}").exists():
        number += 1
    return f"{_SET_ASIDE}-{number}"
