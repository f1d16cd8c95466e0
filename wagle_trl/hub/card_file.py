"""
The card in the folder of a run: which weights and evaluation it is of, and whether somebody has edited it.

It ends with a comment that holds a digest of the card's inputs and one of the text above. An edited card is never
overwritten.
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
from ..files.manifest import move_into_save
from ..files.run_folder import CARD_FILE, GENERATED_CARD_FILE
from ..text import printable
from .card import UNREADABLE, model_card

logger = logging.get_logger(__name__)

_MEASURED = re.compile(r"(<!-- wagle-trl: measured -->\n)(.*?)(<!-- wagle-trl: end) ?([0-9a-f]*) -->", re.DOTALL)
_END = re.compile(r"\n<!-- wagle-trl: card of ([0-9a-f]{16}), written as ([0-9a-f]{16}) -->\s*\Z")


@dataclass(frozen=True)
class CardFile:
    """
    Content of a card file.

    Args:
        text (`str`): Text without the comment at its end.
        state (`str`, *optional*): Digest of the card's inputs.
        digest (`str`, *optional*): Digest of the text as it was written.
    """

    text: str
    state: str | None
    digest: str | None

    @classmethod
    def read(cls, path: Path) -> "CardFile":
        """Read a file. One that is not a card, or is malformed, counts as edited."""
        text = path.read_bytes().decode(errors="replace")
        end = _END.search(text)
        return cls(text, None, None) if end is None else cls(text[: end.start()], end[1], end[2])

    @classmethod
    def of(cls, card: ModelCard, run: Run) -> "CardFile":
        """Take the card that was made from a run."""
        text = _MEASURED.sub(_with_digest, str(card))
        return cls(text, state_of(run), _digest(text))

    @property
    def is_edited(self) -> bool:
        """Whether somebody else wrote the text or changed it since."""
        return self.digest != _digest(self.text)

    def updated(self, run: Run, card: ModelCard) -> "CardFile | None":
        """
        Replace the results of the evaluation.

        Args:
            run ([`~comparison.runs.Run`]): Run with the new results.
            card ([`~huggingface_hub.ModelCard`]): New card of the run.

        Returns:
            `CardFile`: Card with the new results. `None` if their part of the text was edited, or the text is not a card.
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
        """Write the text and its comment to a file."""
        end = f"\n<!-- wagle-trl: card of {self.state}, written as {self.digest} -->\n" if self.digest else ""
        path.write_text(self.text + end, encoding="utf-8", newline="")


def state_of(run: Run) -> str:
    """Hash the inputs of a card: report and evaluation, without the cost."""
    training = {name: value for name, value in run.training.items() if name != "cost"}
    return _digest(json.dumps([training, run.evaluation], sort_keys=True, default=str))


def name_for_card(folder: Path) -> str:
    """Choose the name of a new card in a folder: another one, with a warning, if the card there was edited."""
    path = folder / CARD_FILE
    if not path.is_file() or not CardFile.read(path).is_edited:
        return CARD_FILE
    logger.warning_once(  # a run saves several times, each time with a card
        f"{printable(path, 300)} was edited, or is of another program: it stays, and the new card is {GENERATED_CARD_FILE}."
    )
    return GENERATED_CARD_FILE


def refresh_card(folder: Path) -> None:
    """Put the results of an evaluation into the card in a folder, if there is one. An edited text stays."""
    path = folder / CARD_FILE
    if not path.is_file():
        return
    run, card = read_run(folder), CardFile.read(path)
    if card.state == state_of(run):
        return
    new = card.updated(run, model_card(folder, license="unknown"))  # only its results are used
    with staging_folder(folder) as stage:
        name = CARD_FILE if new else name_for_card(folder)
        (new or CardFile.of(model_card(folder), run)).write(stage / name)
        move_into_save(stage, folder, [name])


def card_to_publish(folder: Path) -> Path:
    """Find the card of the weights and the evaluation in a folder: the edited one if it is of them, else the generated one."""
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
