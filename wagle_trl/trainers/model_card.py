"""The card of a trainer's output folder or checkpoint."""

from pathlib import Path

from ..files.run_folder import CARD_FILE
from ..hub.card import model_card


def write_card(
    trainer,
    folder: str | Path,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write the card of `trainer` from the files in `folder`.

    Args:
        trainer ([`~trainers.MaskedTrainer`]): Trainer, before or after training.
        folder (`str` or `pathlib.Path`): Output folder or checkpoint, with its report.
        model_name (`str`, *optional*): Name of the model; by default that of its repository or output folder.
        dataset_name (`str`, *optional*):
            Data set on the Hub to name beside those that are known, unless `args.hash_forget_set` is set.
        tags (`str` or `list[str]`, *optional*): Tags beside the card's own.
    """
    name = model_name or Path(trainer.hub_model_id or trainer.args.output_dir).resolve().name
    hashed = trainer.mask_options.hash_forget_set
    card = model_card(folder, repo_id=trainer.hub_model_id, model_name=name, hash_forget_set=hashed)
    given = [tags] if isinstance(tags, str) else tags or []
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *trainer._tag_names, *given]))
    if dataset_name and not hashed:
        card.data["datasets"] = list(dict.fromkeys([*(card.data["datasets"] or []), dataset_name]))
    card.save(Path(folder) / CARD_FILE)
