"""Resuming from a whole checkpoint, with the data, the mask and the options that it was saved with."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from typing_extensions import TypedDict

from ..files.manifest import Manifest, files_in
from ..files.reading import validated
from ..files.run_folder import CARD_FILE, MANIFEST_FILE, MASK_FILE
from ..files.schemas import EarlierTraining
from ..masks.mask import WeightMask
from ..text import printable
from .mask_options import base_config
from .run_report import OPTIONS
from .trainer_base import MaskedTrainerBase
from .which_weights import CHECKPOINT
from .whole_saves import restore_replaced

logger = logging.get_logger(__name__)

_EVALUATION_FILES = ("wagle_", "attacks/")  # beginnings of what `wagle eval` may have written beside a checkpoint
# Beginnings of options that do not influence the trained weights
_IRRELEVANT = ("dataloader_", "eval_", "hub_", "include_", "log", "push_", "report_", "save_", "tf32")
_COLUMNS = {"input_ids", "labels", "completion_mask", "assistant_masks", "position_ids", "seq_lengths"}
_OPTIMIZER_FILES = ("optimizer.pt", "scheduler.pt")
_NO_STATE = "it has no optimizer state (save_only_model); load it as a model instead"


class _Facts(TypedDict):
    objective: str
    rows: dict[str, str]
    mask_config: dict[str, Any] | None
    base_fingerprint: NotRequired[str | None]
    options: dict[str, Any]
    earlier_training: NotRequired[list[EarlierTraining]]


def newest_whole_checkpoint(output_dir: str) -> Path:
    """
    Find the last whole checkpoint of a run.

    Args:
        output_dir (`str`):
            Output folder of the run. Without a whole checkpoint in it, this raises a `ValueError`. A warning names later
            checkpoints that are not whole.
    """
    restore_replaced(Path(output_dir))
    steps = {path: CHECKPOINT.fullmatch(path.name) for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    folders = {path: int(match[1]) for path, match in steps.items() if match}
    for folder in sorted(folders, key=folders.__getitem__, reverse=True):
        try:
            whole_manifest(folder)
        except ValueError as error:
            logger.warning(f"{printable(error)} It is skipped.")
        else:
            return folder
    raise ValueError(
        f"No whole checkpoint to resume from in {output_dir}; start again without resume_from_checkpoint."
    )


def whole_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint; a `ValueError` unless every file is there as it was saved."""
    if not folder.is_dir():
        raise ValueError(f"No checkpoint at '{folder}': the folder does not exist.")
    manifest = Manifest.read(folder)
    if manifest is None:
        raise ValueError(f"'{folder}' is not a whole checkpoint: it has no {MANIFEST_FILE}, which is saved last.")
    if changed := manifest.changed(folder, manifest.files.keys() - {CARD_FILE}):  # which its owner may edit
        name, reason = next(iter(changed.items()))
        more = f", and {len(changed) - 1} more files" if len(changed) > 1 else ""
        raise ValueError(f"'{folder}' is not a whole checkpoint: '{name}' {reason}{more}.")
    others = [
        name for name in files_in(folder) if name not in manifest.files and not name.startswith(_EVALUATION_FILES)
    ]
    if others:  # a trainer would load weights and states among them
        raise ValueError(f"'{folder}' holds '{others[0]}', which was not saved with the checkpoint; move it away.")
    return manifest


def run_facts(trainer: MaskedTrainerBase) -> dict[str, Any]:
    """
    Describe the run of a trainer for its checkpoints, for [`check_same_run`].

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer that saves.
    """
    args = trainer.args.to_dict()
    inherited = {field.name for field in dataclasses.fields(base_config(trainer.args))}
    own = {*OPTIONS, *(field.name for field in dataclasses.fields(trainer.args) if field.name not in inherited)}
    rows = {trainer.train_set: trainer.train_dataset, "retain": trainer.retain_dataset}
    mask_config = None
    if trainer.mask_config is not None:  # without the options of where its statistics are kept
        given = dataclasses.asdict(trainer.mask_config)
        mask_config = {name: _as_json(value) for name, value in given.items() if name.startswith("mask_")}
    return {
        "objective": trainer._name,
        "rows": {name: rows_key(dataset) for name, dataset in rows.items() if isinstance(dataset, Dataset)},
        "mask_config": mask_config,
        "base_fingerprint": trainer._base_fingerprint,
        "earlier_training": list(trainer.earlier_training),
        # No texts of inherited options: a text may be a path, and checkpoints are pushed
        "options": {
            name: _as_json(value)
            for name, value in args.items()
            if not name.startswith(_IRRELEVANT)
            and name not in trainer.mask_options.mask_settings  # the mask itself is compared
            and (name in own or isinstance(value, bool | int | float | None))
        },
    }


def _as_json(value: Any) -> Any:
    """Convert a value to what JSON would read back."""
    return json.loads(json.dumps(value, default=str))


def rows_key(dataset: Dataset) -> str:
    """Hash the tokens and labels of prepared rows, in their order; rows without tokens, by all columns."""
    digest = hashlib.sha256()
    columns = sorted(_COLUMNS & set(dataset.column_names)) or sorted(dataset.column_names)
    for row in dataset.select_columns(columns).with_format(None):
        digest.update(json.dumps([row[name] for name in columns], default=str).encode())  # pyright: ignore[reportCallIssue, reportArgumentType]
    return digest.hexdigest()


_RESTORED = ("learning_rate", "weight_decay")  # options that the state of the optimizer holds


def check_same_run(trainer: MaskedTrainerBase, folder: Path, manifest: Manifest) -> None:
    """
    Refuse a checkpoint of another objective, other rows or another mask than the trainer's. A warning names other
    options that differ.

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer that will resume.
        folder (`pathlib.Path`): The checkpoint.
        manifest ([`~files.manifest.Manifest`]): Its manifest.
    """
    saved, now = validated(manifest.facts, _Facts, str(folder / MANIFEST_FILE)), run_facts(trainer)
    if saved["objective"] != now["objective"]:
        raise ValueError(f"'{folder}' is of {saved['objective']}, this trainer of {now['objective']}.")
    if not saved["rows"]:
        logger.warning(f"'{folder}' was published and does not say which rows it is of. They are not compared.")
    for name in {**now["rows"], **saved["rows"]} if saved["rows"] else ():
        if saved["rows"].get(name) != now["rows"].get(name):
            raise ValueError(
                f"The {name} rows, their order, or the answers in them are not those of '{folder}'; resume with the same data, "
                "and the same options for it."
            )
    _check_mask(trainer, folder, manifest, saved, now)
    if not (
        trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    ):  # these keep optimizer states in their own folders
        for name in _OPTIMIZER_FILES:
            if name not in manifest.files:
                raise ValueError(f"'{folder}' cannot be resumed from: {_NO_STATE}.")
    for name in _RESTORED:
        before, after = saved["options"].get(name), now["options"].get(name)
        if before is not None and before != after:
            raise ValueError(
                f"'{folder}' was trained with {name} {printable(before)}, which comes back with its optimizer, whatever is given "
                f"({printable(after)}); give the same, or start a new run from it as the model."
            )
    changed = _differences(saved["options"], now["options"])
    if changed:
        logger.warning(f"Resuming '{folder}' with other options than it was saved with: {printable(changed)}.")


def _check_mask(
    trainer: MaskedTrainerBase, folder: Path, manifest: Manifest, saved: Mapping[str, Any], now: dict[str, Any]
) -> None:
    has_mask, wants_mask = MASK_FILE in manifest.files, trainer.mask is not None or trainer.mask_config is not None
    if has_mask and not wants_mask:
        raise ValueError(f"{folder} was trained with a mask; pass `mask` or `mask_config` to resume it.")
    if wants_mask and not has_mask:
        raise ValueError(f"{folder} was trained without a mask; pass neither `mask` nor `mask_config` to resume it.")
    if trainer.mask is not None and trainer.mask != WeightMask.load(folder):
        raise ValueError(f"`mask` differs from the mask of '{folder}'; pass the same, or start a new run.")
    if trainer.mask_config is not None and saved["mask_config"] != now["mask_config"]:
        differences = _differences(saved["mask_config"] or {}, now["mask_config"]) or "it was given a mask"
        raise ValueError(
            f"`mask_config` differs from that of '{folder}' ({differences}); pass the same, or start a new run."
        )


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [name for name in now if name in saved and saved[name] != now[name]]
    return ", ".join(f"{name} {saved[name]} -> {now[name]}" for name in changed)


def check_base_of(folder: Path, fingerprint: str) -> None:
    """Refuse a checkpoint that started from weights other than those of `fingerprint`, the base of a delta."""
    saved = validated(whole_manifest(folder).facts, _Facts, str(folder / MANIFEST_FILE)).get("base_fingerprint")
    if saved not in (None, fingerprint):
        raise ValueError(
            f"The model is not the base that '{folder}' started from; pass that base, of which the delta and the reference are."
        )
