"""`wagle_report.json`: what a run did, to which weights, and what came of it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, PeftType
from transformers import TrainingArguments

from ..data.provenance import describe_rows, model_commit
from ..files.atomic import write_json
from ..files.run_folder import REPORT_FILE
from ..papers import Paper
from .mask_options import MaskOptions, base_config

OPTIONS = (  # that decide what a run becomes
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "lr_scheduler_type",
    "seed",
    "max_length",
    "beta",
)
_SHOWN = "trajectory_"  # beginning of options that decide only what is shown of a run

_TIMED = ("_runtime", "_per_second")
_PACKAGES = ("wagle-trl", "torch", "transformers", "trl", "accelerate", "datasets", "peft")


@dataclass
class Given:
    """
    What a trainer was given, for its report. Rows are described when that is written, as hashing many takes time.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): The model, or its name.
        revision (`str`, *optional*): Revision to load, where a name was given.
        rows (`dict[str, datasets.Dataset]`): The rows of every set, as they came.
    """

    model: Any
    revision: str | None
    rows: Mapping[str, Dataset | None]
    _described: dict[bool, dict[str, dict[str, Any]]] = field(default_factory=dict, init=False)

    def data(self, folder: str, hashed: bool) -> dict[str, dict[str, Any]]:
        """[`~data.provenance.describe_rows`] of every set that there is."""
        if hashed not in self._described:
            given = {name: rows for name, rows in self.rows.items() if rows is not None}
            self._described[hashed] = {
                name: describe_rows(rows, folder, hashed=hashed) for name, rows in given.items()
            }
        return self._described[hashed]

    @cached_property
    def base_revision(self) -> str | None:
        """Commit of the model on the Hub. A model that was passed loaded knows it only before transformers 5.23."""
        if isinstance(self.model, str):
            return model_commit(self.model, self.revision)
        return getattr(self.model.config, "_commit_hash", None)


def write_run_report(trainer, folder: str | Path, objective: str | None = None) -> Path:
    """
    Write the report of `trainer` into `folder`.

    Args:
        trainer ([`~trainers.MaskedTrainer`]): Trainer, before or after training.
        folder (`str`): Existing or new folder.
        objective (`str`, *optional*): What was done, where that was not training.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_json(Path(folder) / REPORT_FILE, run_report(trainer, objective))


def run_report(trainer, objective: str | None = None) -> dict[str, Any]:
    """The content of the report: objective, base model, weights, data, options, mask, logs, versions, cost."""
    args = {} if objective else trainer.args.to_dict()
    fingerprint = None if objective else trainer.saved_fingerprint()
    base = trainer.model.config._name_or_path
    adapters = trainer.model.active_peft_config if isinstance(trainer.model, PeftModel) else None
    return {
        "objective": objective or trainer._name,
        "paper": None if objective else _paper(trainer),
        "base_model": base,
        "base_revision": trainer.given.base_revision,
        "base_is_local": os.path.isdir(base),
        "peft_type": None if adapters is None else PeftType(adapters.peft_type).value,
        **({} if fingerprint is None else {"fingerprint": fingerprint}),
        "data": trainer.given.data(trainer.args.output_dir, trainer.mask_options.hash_forget_set),
        "num_train_rows": len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else None,
        "num_retain_rows": None if trainer.retain_dataset is None else len(trainer.retain_dataset),
        "options": {name: args[name] for name in reported_options(trainer.args) if name in args},
        "tokenization": trainer.tokenization,
        "answer_tokens": {name: asdict(counted) for name, counted in trainer.answer_tokens.items()},
        "mask": trainer.mask_report,
        "steps": trainer.state.global_step,
        "log_history": [_part(entry, timed=False) for entry in trainer.state.log_history],
        "versions": {name: version(name) for name in _PACKAGES},
        "cost": _cost(trainer),
    }


def _paper(trainer) -> dict[str, str] | None:
    """What the card cites. TRL's own trainers have a text instead, in which authors are no field."""
    return asdict(trainer._paper) if isinstance(getattr(trainer, "_paper", None), Paper) else None


def reported_options(args: TrainingArguments) -> list[str]:
    """Names of the options that decide what a run becomes: common ones, and those of the objective's own config."""
    others = {field.name for kind in (base_config(args), MaskOptions) for field in fields(kind)}
    own = [field.name for field in fields(args) if field.name not in others]
    return list(dict.fromkeys([*OPTIONS, *(name for name in own if not name.startswith(_SHOWN))]))


def _cost(trainer) -> dict[str, Any]:
    """What depends on the machine and the hour: all else in the reports of two equal runs is equal."""
    times = [_part(entry, timed=True) for entry in trainer.state.log_history]
    return {
        "times": [entry for entry in times if entry.keys() - {"step"}],
        "peak_memory_bytes": trainer.memory.measured,
        "memory_plan": None if trainer.memory.plan is None else trainer.memory.plan.to_dict(),
    }


def _part(entry: dict[str, Any], timed: bool) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name == "step" or name.endswith(_TIMED) == timed}
