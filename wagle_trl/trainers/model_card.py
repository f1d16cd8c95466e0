"""The card of a trainer's output folder or checkpoint."""

from pathlib import Path

from ..attribution.report import plot_mask
from ..files.atomic import staging_folder
from ..files.run_folder import CARD_FILE, EVALUATION_FILE, MASK_FILE, PLOT_FILE, REPORT_FILE
from ..hub.card import model_card
from .run_report import write_run_report
from .trainer_base import MaskedTrainerBase
from .whole_saves import add_to_save, holds_save, link_into


def write_card(
    trainer: MaskedTrainerBase,
    folder: str | Path,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write the card of `trainer` from the files in `folder`.

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer, before or after training.
        folder (`str` or `pathlib.Path`): Output folder or checkpoint that holds a report.
        model_name (`str`, *optional*): Name of the model; by default that of its repository or output folder.
        dataset_name (`str`, *optional*):
            Data set on the Hub to name beside those of the report, unless `args.hash_forget_set` is set.
        tags (`str` or `list[str]`, *optional*): Tags to add to the card's own.
    """
    name = model_name or Path(trainer.hub_model_id or trainer.args.output_dir).resolve().name
    hashed = trainer.mask_options.hash_forget_set
    card = model_card(folder, repo_id=trainer.hub_model_id, model_name=name, hash_forget_set=hashed)
    given = [tags] if isinstance(tags, str) else tags or []
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *trainer._tag_names, *given]))
    if dataset_name and not hashed:
        card.data["datasets"] = list(dict.fromkeys([*(card.data["datasets"] or []), dataset_name]))
    card.save(Path(folder) / CARD_FILE)


def update_card(
    trainer: MaskedTrainerBase,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write the card, the report and the picture of the mask into the output folder of `trainer`. While a checkpoint is
    saved, write the picture alone: a checkpoint has its own card and report.

    Args:
        trainer, model_name, dataset_name, tags: As in [`write_card`].
    """
    folder = Path(trainer.args.output_dir)
    if trainer._saves_checkpoint:
        if not holds_save(folder):
            _plot_mask(trainer, folder, folder)
        return
    with staging_folder(folder) as stage:
        _plot_mask(trainer, folder, stage)
        link_into(folder, stage, [PLOT_FILE, MASK_FILE, EVALUATION_FILE])
        write_run_report(trainer, stage)
        write_card(trainer, stage, model_name, dataset_name, tags)
        add_to_save(stage, folder, [REPORT_FILE, CARD_FILE, *([] if trainer.mask is None else [PLOT_FILE])])


def _plot_mask(trainer: MaskedTrainerBase, folder: Path, place: Path) -> None:
    """Draw the mask into `place`, unless `folder` has the picture that this trainer drew of it."""
    if trainer.mask is not None and (trainer._plotted_mask is not trainer.mask or not (folder / PLOT_FILE).exists()):
        plot_mask(trainer.mask, place / PLOT_FILE)
        trainer._plotted_mask = trainer.mask
