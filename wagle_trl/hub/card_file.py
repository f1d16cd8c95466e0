"""
The card in the folder of a run: of which weights and which evaluation it is, and whether its owner has edited it.

It ends with a comment that holds a digest of what the card was made from, and one of the text above. What was edited is
never overwritten.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from transformers.utils import logging

from ..comparison.runs import Run, read_run
from ..files.atomic import staging_folder
from ..files.manifest import land_in_save
from ..files.run_folder import CARD_FILE, GENERATED_CARD_FILE
from ..text import printable
from .card import UNREADABLE, model_card

logger = logging.get_logger(__name__)

_MEASURED = re.compile(r"(<!-- wagle-trl: measured -->\n)(.*?)(<!-- wagle-trl: end) ?([0-9a-f]*) -->", re.DOTALL)
_END = re.compile(r"\n<!-- wagle-trl: card of ([0-9a-f]{16}), written as ([0-9a-f]{16}) -->\s*\Z")


@dataclass(frozen=True)
class CardFile:
    """
    A card as it is in a folder.

    Args:
        text (`str`): What it says, without the comment at its end.
        state (`str`, *optional*): Digest of what it was made from.
        digest (`str`, *optional*): Digest of the text as it was written.
    """

    text: str
    state: str | None
    digest: str | None

    @classmethod
    def read(cls, path: Path) -> "CardFile":
        """The card in a file, whatever else may be in it: that is edited, too."""
        text = path.read_bytes().decode(errors="replace")
        end = _END.search(text)
        return cls(text, None, None) if end is None else cls(text[: end.start()], end[1], end[2])

    @classmethod
    def of(cls, card: ModelCard, run: Run) -> "CardFile":
        """A card that was made from a run."""
        text = _MEASURED.sub(_with_digest, str(card))
        return cls(text, state_of(run), _digest(text))

    @property
    def is_edited(self) -> bool:
        """Whether its owner, or another program, has written it, or changed it since."""
        return self.digest != _digest(self.text)

    def updated(self, run: Run, card: ModelCard) -> "CardFile | None":
        """
        The same with what was measured of a run; `None` if that part was edited, or the whole is no card any more.

        Args:
            run ([`~comparison.runs.Run`]): The run.
            card ([`~huggingface_hub.ModelCard`]): Its new card.
        """
        old, new = _MEASURED.search(self.text), _MEASURED.search(str(card))
        if old is None or new is None or old[4] != _digest(old[2]):
            return None
        try:
            changed = ModelCard(self.text[: old.start()] + _with_digest(new) + self.text[old.end() :])
            changed.data["eval_results"] = card.data["eval_results"]
            changed.data["model_name"] = changed.data.get("model_name") or card.data["model_name"]
            text = str(changed)
        except UNREADABLE:
            return None
        return CardFile(text, state_of(run), self.digest if self.is_edited else _digest(text))

    def write(self, path: Path) -> None:
        """Write it to a file."""
        end = f"\n<!-- wagle-trl: card of {self.state}, written as {self.digest} -->\n" if self.digest else ""
        path.write_text(self.text + end, encoding="utf-8", newline="")


def state_of(run: Run) -> str:
    """Digest of what a card is made from: the weights, how they came about, and what was measured of them."""
    training = {name: value for name, value in run.training.items() if name != "cost"}
    return _digest(json.dumps([training, run.evaluation], sort_keys=True, default=str))


def name_for_card(folder: Path) -> str:
    """Under which name a new card goes into a folder: not under that of a card that was edited, which is said."""
    path = folder / CARD_FILE
    if not path.is_file() or not CardFile.read(path).is_edited:
        return CARD_FILE
    logger.warning_once(  # several files are saved in a run, each with its card
        f"{printable(path, 300)} was edited, or is of another program: it stays, and the new card is {GENERATED_CARD_FILE}."
    )
    return GENERATED_CARD_FILE


def refresh_card(folder: Path) -> None:
    """Bring the card in a folder, if there is one, up to date with what was measured; what was edited stays."""
    path = folder / CARD_FILE
    if not path.is_file():
        return
    run, card = read_run(folder), CardFile.read(path)
    if card.state == state_of(run):
        return
    new = card.updated(run, model_card(folder, license="unknown"))  # of which no licence is taken
    with staging_folder(folder) as stage:
        name = CARD_FILE if new else name_for_card(folder)
        (new or CardFile.of(model_card(folder), run)).write(stage / name)
        land_in_save(stage, folder, [name])


def card_to_publish(folder: Path) -> Path:
    """The card in a folder that is of the weights and the evaluation there: an edited one, if it is, else the generated one."""
    path, generated = folder / CARD_FILE, folder / GENERATED_CARD_FILE
    if not generated.is_file() or CardFile.read(path).state == state_of(read_run(folder)):
        return path
    logger.warning(
        f"{printable(path, 300)} was edited, and is not known to be of these weights: {generated.name} is published instead."
    )
    return generated


def _with_digest(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{found[3]} {_digest(found[2])} -->"


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]
