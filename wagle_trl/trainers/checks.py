"""Checks of a trainer's arguments, before any long work."""

from typing import Any

from accelerate import Accelerator, DistributedType
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments
from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

from ..attribution.config import MaskConfig
from ..attribution.scores import get_score
from ..attribution.selection import num_to_select
from ..masks.fingerprint import model_fingerprint
from ..masks.mask import WeightMask
from ..masks.scope import scope_parameters
from ..optim.compact_state import check_dtype
from ..optim.masked_adamw import STATE_BITS
from .trainer_base import FilledArguments

# Metrics of rows to forget -> the value of `greater_is_better` under which the best model is the one that knows them best
_KEEPS_WHAT_REMEMBERS = {"loss": False, "mean_token_accuracy": True, "entropy": False}


def check_rows(dataset: Dataset | None, name: str) -> None:
    """The argument `name` must be a data set with rows."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"`{name}` is a streaming data set; load it as a `Dataset` so that it has a length.")
    if not isinstance(dataset, Dataset | None):
        raise ValueError(f"`{name}` must be a `Dataset`, got {type(dataset).__name__}; pick one split of it.")
    if dataset is not None and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; pass at least one row.")


def check_answers(dataset: Dataset, name: str) -> None:
    """Every row of the set `name` must have an answer."""
    blank = next((i for i, row in enumerate(dataset) if not _has_answer(row)), None)  # pyright: ignore[reportArgumentType]
    if blank is not None:
        raise ValueError(f"Row {blank} of the {name} set has no answer; remove it or give it one.")


def check_none_dropped(raw: Dataset, prepared: Dataset, name: str, max_length: int | None) -> None:
    """TRL silently drops rows whose answer was cut off; a forget row that is dropped is not forgotten."""
    if len(prepared) < len(raw):
        raise ValueError(
            f"{len(raw) - len(prepared)} rows of the {name} set have no answer token left within "
            f"max_length={max_length}; raise it or shorten the prompts."
        )


def _has_answer(row: dict) -> bool:
    for column in ("completion", "messages", "text"):
        if column in row:
            if not row[column]:
                return False
            return row[column].strip() != "" if isinstance(row[column], str) else _says_something(row[column][-1])
    # The first label is never predicted: there is nothing before it to predict it from
    return "labels" not in row or any(label != -100 for label in (row["labels"] or [])[1:])


def _says_something(message: dict) -> bool:
    """Text, content parts of a multimodal message, or a tool call."""
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content or message.get("tool_calls"))


def check_supported(args: FilledArguments, has_optimizer: bool) -> None:
    """The options must be such that a mask can be trained."""
    if args.fp16:
        raise ValueError("fp16 training scales gradients, which a mask cannot follow; use bf16 or full precision.")
    if args.deepspeed_plugin is not None:
        raise ValueError("A mask cannot be trained with DeepSpeed ZeRO; it keeps the optimizer state itself.")
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError("Reentrant gradient checkpointing is not supported with a mask; set use_reentrant to False.")
    if args.optim not in STATE_BITS or has_optimizer:
        raise ValueError(
            f"A mask trains with AdamW of its own; leave `optim` at one of {', '.join(STATE_BITS)} (got '{args.optim.value}') "
            "and pass no optimizer."
        )


def check_best_metric(args: TrainingArguments, evaluated: Any, train: Dataset | None, unlearns: bool) -> None:
    """
    The metric that chooses the best model must be there, and must not choose the model that remembers most.

    Args:
        args ([`~transformers.TrainingArguments`]): Options.
        evaluated ([`~datasets.Dataset`] or `dict`, *optional*): Evaluation set or sets.
        train ([`~datasets.Dataset`], *optional*): Training rows.
        unlearns (`bool`): Whether these are rows to forget.
    """
    if args.metric_for_best_model is None or args.eval_strategy == "no":
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    sets = {f"{name}_": rows for name, rows in evaluated.items()} if isinstance(evaluated, dict) else {"": evaluated}
    chosen = [prefix for prefix in sets if metric.startswith(prefix)]
    forget = {prefix for prefix, rows in sets.items() if prefix == "forget_" or (unlearns and _same_rows(rows, train))}
    if not chosen:
        options = [f"eval_{prefix}loss{' (with greater_is_better)' * (prefix in forget)}" for prefix in sets]
        raise ValueError(
            f"metric_for_best_model is '{args.metric_for_best_model}', which is of none of the evaluation sets; choose one of "
            f"{', '.join(options)}."
        )
    kept = _KEEPS_WHAT_REMEMBERS.get(metric.removeprefix(max(chosen, key=len)))
    if max(chosen, key=len) in forget and kept is not None and bool(args.greater_is_better) == kept:
        raise ValueError(
            f"metric_for_best_model '{args.metric_for_best_model}' with greater_is_better={kept} keeps the model that remembers "
            f"most of the forget rows; set greater_is_better={not kept}, or choose a metric of the retain rows."
        )


def _same_rows(rows: Any, others: Dataset | None) -> bool:
    return isinstance(rows, Dataset) and others is not None and rows._fingerprint == others._fingerprint


def check_save_delta(masked: bool, model: nn.Module) -> None:
    """A delta holds the selected weights of a whole model."""
    if not masked:
        raise ValueError(
            "save_delta saves the weights that a mask selects; pass `mask` or `mask_config`, or unset it."
        )
    if isinstance(model, PeftModel):
        raise ValueError("save_delta is for the weights of a model; adapters are small files already, so unset it.")


def check_is_base(model: nn.Module, mask: WeightMask) -> None:
    """A delta starts from the weights that its mask was made for, not from a checkpoint of the run."""
    declared = mask.info.fingerprint
    if declared and declared != model_fingerprint(model):
        raise ValueError(
            "save_delta needs the base model, but the mask was made for other weights than those loaded; pass the base as "
            "`model`, and a checkpoint to `train(resume_from_checkpoint=...)`."
        )


def check_accelerator(accelerator: Accelerator) -> None:
    """What the launcher chose must be such that a mask can be trained."""
    if accelerator.mixed_precision == "fp16":
        raise ValueError("fp16 training scales gradients, which a mask cannot follow; launch with bf16 or no mixing.")
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("A mask cannot be trained with FSDP yet; run on one process or with DDP.")


def check_mask_config(config: MaskConfig, model: nn.Module, has_rows: bool, retain: Dataset | None) -> None:
    """It must be possible to compute the mask of `config`, as far as one can tell without data."""
    scope = scope_parameters(model, config.mask_scope, config.mask_exclude)
    for name, parameter in scope.items():
        check_dtype(name, parameter)
    num_to_select(config.mask_density, sum(parameter.numel() for parameter in scope.values()))
    if get_score(config.mask_score).uses_retain and retain is None:
        raise ValueError(
            f"mask_score '{config.mask_score}' needs `retain_dataset`; pass one or choose a score of the training "
            "rows alone."
        )
    if get_score(config.mask_score).statistic and not has_rows:
        raise ValueError(
            f"mask_score '{config.mask_score}' needs rows with answers, and `train_dataset` has none that it understands; pass "
            "`forget_dataset`, for example with prompt/completion."
        )


def check_one_row_a_sample(args: SFTConfig) -> None:
    """Attribution goes row by row."""
    if args.packing or args.padding_free:
        raise ValueError("Attribution needs one row a sample; set `packing=False` and `padding_free=False`.")
