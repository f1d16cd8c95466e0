"""`wagle_report.json`: what a run did, to which weights, and with what result."""

import os
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, PeftType
from transformers import TrainingArguments

from ..comparison.history import History
from ..comparison.verdict import closing_verdict
from ..files.atomic import write_json
from ..files.run_folder import REPORT_FILE
from ..masks.adapters import adapter_settings
from ..papers import Paper
from .mask_options import MaskOptions, base_config
from .tracking import mask_settings
from .trainer_base import MaskedTrainerBase

OPTIONS = (  # those that influence the trained weights
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "lr_scheduler_type",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "data_seed",
    "max_length",
    "beta",
)
_TIMED = ("_runtime", "_per_second")  # ends of the names of logged times
_PACKAGES = ("wagle-trl", "torch", "transformers", "trl", "accelerate", "datasets", "peft")


def write_run_report(trainer: MaskedTrainerBase, folder: str | Path, objective: str | None = None) -> Path:
    """
    Write the report of `trainer` into `folder`.

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer, before or after training.
        folder (`str`): Existing or new folder.
        objective (`str`, *optional*): What was done, if it was not training.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_json(Path(folder) / REPORT_FILE, run_report(trainer, objective))


def run_report(trainer: MaskedTrainerBase, objective: str | None = None) -> dict[str, Any]:
    """Compile the report: objective, base model, weights, data, options, mask, logs, versions, cost."""
    args = {} if objective else trainer.args.to_dict()
    fingerprint = None if objective else trainer.saved_fingerprint()
    base = trainer.model.config._name_or_path
    adapters = trainer.model if isinstance(trainer.model, PeftModel) else None
    report = {
        "objective": objective or trainer._name,
        "paper": None if objective else _paper(trainer),
        "base_model": base,
        "base_revision": trainer.run_inputs.base_revision,
        "base_is_local": os.path.isdir(base),
        "peft_type": None if adapters is None else PeftType(adapters.active_peft_config.peft_type).value,
        **({} if fingerprint is None else {"fingerprint": fingerprint}),
        "data": trainer.run_inputs.data(trainer.args.output_dir, trainer.mask_options.hash_forget_set),
        "num_train_rows": len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else None,
        "num_retain_rows": None if trainer.retain_dataset is None else len(trainer.retain_dataset),
        "options": {name: args[name] for name in reported_options(trainer.args) if name in args}
        | ({} if trainer.mask is None else mask_settings(trainer.mask))
        | ({} if adapters is None else adapter_settings(adapters)),
        "tokenization": trainer.tokenization,
        "answer_tokens": {name: asdict(counted) for name, counted in trainer.answer_tokens.items()},
        "mask": trainer.mask_report,
        "steps": trainer.state.global_step,
        "loaded_step": trainer.loaded_step,
        "measured_fingerprint": trainer.measured_fingerprint,
        "earlier_training": [
            part | {"log_history": _untimed(part["log_history"])} for part in trainer.earlier_training
        ],
        "log_history": _untimed(trainer.state.log_history),
        "versions": {name: version(name) for name in _PACKAGES},
        "cost": _cost(trainer),
    }
    # A checkpoint is of a run that goes on
    verdict = None if trainer._saves_checkpoint else closing_verdict(History(report), report["options"])  # pyright: ignore[reportArgumentType]
    return report | {"verdict": verdict}


def _paper(trainer: MaskedTrainerBase) -> dict[str, str] | None:
    """The paper that the card cites. The `_paper` of TRL's own trainers is a text without a field for authors."""
    paper = getattr(trainer, "_paper", None)
    return asdict(paper) if isinstance(paper, Paper) else None


def reported_options(args: TrainingArguments) -> list[str]:
    """Name the options that influence the trained weights: common ones, and those of the objective's own config."""
    others = {field.name for kind in (base_config(args), MaskOptions) for field in fields(kind)}
    own = [field.name for field in fields(args) if field.name not in others]
    return list(dict.fromkeys([*OPTIONS, *own]))


def _cost(trainer: MaskedTrainerBase) -> dict[str, Any]:
    """Collect what depends on the machine and the time: all else in the reports of two equal runs is equal."""
    times = [_part(entry, timed=True) for entry in trainer.state.log_history]
    return {
        "times": [entry for entry in times if entry.keys() - {"step"}],
        "peak_memory_bytes": trainer.memory.measured,
        "memory_plan": None if trainer.memory.plan is None else trainer.memory.plan.to_dict(),
    }


def _untimed(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_part(entry, timed=False) for entry in log_history]


def _part(entry: dict[str, Any], timed: bool) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name == "step" or name.endswith(_TIMED) == timed}
