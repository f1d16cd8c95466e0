"""The card of a trainer's output folder or checkpoint."""

from pathlib import Path

from ..comparison.runs import read_run
from ..hub.card import model_card
from ..hub.card_file import CardFile, name_for_card


def write_card(
    trainer,
    stage: Path,
    folder: Path,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> str:
    """
    Write the card of `trainer` from the files in `stage`.

    Args:
        trainer ([`~trainers.MaskedTrainer`]): Trainer, before or after training.
        stage (`pathlib.Path`): Folder with its report, and where the card is written.
        folder (`pathlib.Path`): Where it will go: a card there that was edited stays.
        model_name (`str`, *optional*): Name of the model; by default that of its repository or output folder.
        dataset_name (`str`, *optional*):
            Data set on the Hub to name beside those that are known, unless `args.hash_forget_set` is set.
        tags (`str` or `list[str]`, *optional*): Tags beside the card's own.

    Returns:
        `str`: Name of the file.
    """
    name = model_name or Path(trainer.hub_model_id or trainer.args.output_dir).resolve().name
    hashed = trainer.mask_options.hash_forget_set
    card = model_card(stage, repo_id=trainer.hub_model_id, model_name=name, hash_forget_set=hashed)
    given = [tags] if isinstance(tags, str) else tags or []
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *trainer._tag_names, *given]))
    if dataset_name and not hashed:
        card.data["datasets"] = list(dict.fromkeys([*(card.data["datasets"] or []), dataset_name]))
    name_of_file = name_for_card(folder)
    CardFile.of(card, read_run(stage)).write(stage / name_of_file)
    return name_of_file
