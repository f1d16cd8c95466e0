"""`wagle_report.json`: what a run did, to which weights, and what came of it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files import REPORT_FILE, write_json

_OPTIONS = (
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
    "retain_weight",
)
_PACKAGES = ("wagle-trl", "torch", "transformers", "trl", "accelerate", "datasets", "peft")


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
    """The content of the report: objective, base model, options, mask, logs, peak memory, versions."""
    args = {} if objective else trainer.args.to_dict()
    return {
        "objective": objective or trainer._name,
        "base_model": trainer.model.config._name_or_path,
        "num_train_rows": len(trainer.train_dataset),
        "num_retain_rows": None if trainer.retain_dataset is None else len(trainer.retain_dataset),
        "options": {name: args[name] for name in _OPTIONS if name in args},
        "mask": trainer.mask_report,
        "log_history": trainer.state.log_history,
        "peak_memory_bytes": trainer.memory.measured,
        "memory_plan": None if trainer.memory.plan is None else trainer.memory.plan.to_dict(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
