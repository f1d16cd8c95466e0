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
from ..comparison.goal import KEPT
from ..data.compatibility import check_tokens
from ..files.atomic import check_writable
from ..losses.fused_head import check_fused_head
from ..masks.fingerprint import model_fingerprint
from ..masks.mask import WeightMask
from ..masks.scope import scope_parameters
from ..optim.compact_state import check_dtype
from ..optim.masked_adamw import STATE_BITS
from .trainer_base import FilledArguments, MaskedTrainerBase

# Metric of forget rows -> value of `greater_is_better` that keeps the model which remembers them best
_KEEPS_MEMORIES = {"loss": False, "mean_token_accuracy": True, "entropy": False}


def check_rows(dataset: Dataset | None, name: str) -> None:
    """Refuse a `dataset` without rows or of another kind; `name` is that of the argument."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"`{name}` is a streaming data set; load it as a `Dataset` so that it has a length.")
    if not isinstance(dataset, Dataset | None):
        raise ValueError(f"`{name}` must be a `Dataset`, got {type(dataset).__name__}; pick one split of it.")
    if dataset is not None and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; pass at least one row.")


def check_arguments(args: FilledArguments, masked: bool, given: dict[str, Any], unlearns: bool) -> None:
    """
    Refuse arguments with which a trainer cannot save, cannot train a mask, or keeps the wrong model as the best.

    Args:
        args ([`~transformers.TrainingArguments`]): The configuration.
        masked (`bool`): Whether the trainer trains a mask.
        given (`dict`): The other arguments by name.
        unlearns (`bool`): Whether the training rows are forget rows.
    """
    check_writable(args.output_dir)
    _check_best_metric(args, given, unlearns)
    if not masked:
        return
    if args.fp16:
        raise ValueError("fp16 training scales gradients, which a mask cannot follow; use bf16 or full precision.")
    if args.deepspeed_plugin is not None:
        raise ValueError("A mask cannot be trained with DeepSpeed ZeRO; it keeps the optimizer state itself.")
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError("Reentrant gradient checkpointing is not supported with a mask; set use_reentrant to False.")
    optimizers = given.get("optimizers") or (None,)
    has_optimizer = optimizers[0] is not None or given.get("optimizer_cls_and_kwargs") is not None
    if args.optim not in STATE_BITS or has_optimizer:
        raise ValueError(
            f"A mask trains with its own AdamW; leave `optim` at one of {', '.join(STATE_BITS)} (got '{args.optim.value}') "
            "and pass no optimizer."
        )
    for name in ("optim_args", "optim_target_modules"):
        if getattr(args, name):
            raise ValueError(
                f"A mask trains with its own AdamW, which reads no {name} (got {getattr(args, name)!r}); unset it."
            )


def _check_best_metric(args: TrainingArguments, given: dict[str, Any], unlearns: bool) -> None:
    """Refuse a metric for the best model that no evaluation set has, or that keeps the model which remembers most."""
    if args.metric_for_best_model is None or args.eval_strategy == "no":
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    if unlearns and metric == KEPT:
        if args.greater_is_better is False:
            raise ValueError(
                f"metric_for_best_model '{KEPT}' is greater for better models; leave greater_is_better unset."
            )
        return
    evaluated, train = given.get("eval_dataset"), given.get("train_dataset")
    sets = {f"{name}_": rows for name, rows in evaluated.items()} if isinstance(evaluated, dict) else {"": evaluated}
    chosen = [prefix for prefix in sets if metric.startswith(prefix)]
    forget = {prefix for prefix, rows in sets.items() if prefix == "forget_" or (unlearns and _same_rows(rows, train))}
    if not chosen:
        options = [KEPT] if unlearns else []
        options += [f"eval_{prefix}loss{' (with greater_is_better)' * (prefix in forget)}" for prefix in sets]
        raise ValueError(
            f"metric_for_best_model is '{args.metric_for_best_model}', which is of none of the evaluation sets; choose one of "
            f"{', '.join(options)}."
        )
    kept = _KEEPS_MEMORIES.get(metric.removeprefix(max(chosen, key=len)))
    if max(chosen, key=len) in forget and kept is not None and bool(args.greater_is_better) == kept:
        raise ValueError(
            f"metric_for_best_model '{args.metric_for_best_model}' with greater_is_better={kept} keeps the model that remembers "
            f"most of the forget rows; set greater_is_better={not kept}, or choose a metric of the retain rows."
        )


def _same_rows(rows: Any, others: Dataset | None) -> bool:
    return isinstance(rows, Dataset) and others is not None and rows._fingerprint == others._fingerprint


def check_before_work(trainer: MaskedTrainerBase, masked: bool) -> None:
    """
    Check model, mask, tokenizer, rows and options against each other, before any batch is computed.

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer with its prepared data sets.
        masked (`bool`): Whether it trains a mask.
    """
    args, rows = trainer.args, trainer.train_dataset
    if trainer.mask is not None:
        trainer.mask.check(trainer.model)
    if not masked and not any(parameter.requires_grad for parameter in trainer.model.parameters()):
        raise ValueError(
            "Every parameter is frozen and there is no mask, so nothing would train; unfreeze some or pass a mask."
        )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}.")
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"num_train_epochs is {args.num_train_epochs:g} and max_steps {args.max_steps}: no step would be made."
        )
    step = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < step:
        raise ValueError(
            f"With dataloader_drop_last, {len(rows)} training rows in batches of {step} make no step; lower "
            "per_device_train_batch_size or unset it."
        )
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    sets = [(trainer.train_set, rows), ("forget", trainer.forget_dataset), ("retain", trainer.retain_dataset)]
    if trainer.processing_class is not None:  # a trainer of one's own may have none
        for name, dataset in (*sets, *evaluated.items()):
            if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
                check_tokens(trainer.model, trainer.processing_class, {name: dataset["input_ids"]})
    _check_fused_heads(trainer)


def _check_fused_heads(trainer: MaskedTrainerBase) -> None:
    """Replace the fused LM head where it is wrong for the model, or for the reference model of some trainers."""
    if trainer.head_temperature is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return  # the last two keep the weights in shards
    models = [trainer.model, vars(trainer).get("ref_model")]
    with trainer.accelerator.autocast():  # as in training
        right = [check_fused_head(model, trainer.head_temperature) for model in models if model is not None]
    if not right[0]:
        trainer.planning_losses = None  # it predicts the fused head


def check_save_delta(masked: bool, model: nn.Module) -> None:
    """Refuse `save_delta` without a mask or with adapters: a delta holds the selected weights of a whole model."""
    if not masked:
        raise ValueError(
            "save_delta saves the weights that a mask selects; pass `mask` or `mask_config`, or unset it."
        )
    if isinstance(model, PeftModel):
        raise ValueError("save_delta is for the weights of a model; adapters are small files already, so unset it.")


def check_is_base(model: nn.Module, mask: WeightMask) -> None:
    """Refuse a model that the mask was not made for: a delta and a reference are of the base, not of a checkpoint."""
    declared = mask.info.fingerprint
    if declared and declared != model_fingerprint(model):
        raise ValueError(
            "This run needs the base model, but the mask was made for other weights than those loaded; pass the base as "
            "`model`, and a checkpoint to `train(resume_from_checkpoint=...)`."
        )


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse precision and sharding of the launcher with which no mask can be trained."""
    if accelerator.mixed_precision == "fp16":
        raise ValueError("fp16 training scales gradients, which a mask cannot follow; launch with bf16 or no mixing.")
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("A mask cannot be trained with FSDP yet; run on one process or with DDP.")


def check_mask_config(config: MaskConfig, model: nn.Module, has_rows: bool, retain: Dataset | None) -> None:
    """Refuse options of a mask that cannot be computed, as far as they show without reading rows."""
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


def check_unpacked(args: SFTConfig) -> None:
    """Refuse packed rows: attribution reads them one by one."""
    if args.packing or args.padding_free:
        raise ValueError("Attribution needs one row per sample; set `packing=False` and `padding_free=False`.")
