"""A mask on TRL's `SFTTrainer`: the trainer, and the base of those that unlearn."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils.import_utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from ..attribution.config import MaskConfig
from ..data.formats import pin_date
from ..losses.per_sample import Batch, fused_sample_losses
from ..masks.mask import WeightMask
from ..memory.simulation import losses_on_gpu
from .checks import check_answers, check_none_dropped, check_one_row_a_sample, check_rows
from .mask_mixin import MaskMixin
from .mask_options import MaskOptions


@dataclass
class MaskedSFTConfig(MaskOptions, SFTConfig):
    r"""
    Configuration class for the [`MaskedSFTTrainer`]: [`~trl.SFTConfig`] with [`~trainers.mask_options.MaskOptions`], but
    `bf16` defaults to whether the device has it, so that the same script runs on a CPU.
    """

    def __post_init__(self):
        if self.bf16 is None and not is_torch_bf16_gpu_available():
            self.bf16 = False
        super().__post_init__()


class MaskedSFTTrainer(MaskMixin, SFTTrainer):
    """
    Supervised fine-tuning of selected weights: [`~trl.SFTTrainer`] with a mask.

    To teach refusals, for example, pass them as `train_dataset` and the questions with their old answers as
    `forget_dataset`: the weights that hold the old answers are the ones that learn.

    The arguments are those of [`~trl.SFTTrainer`] and:

    Args:
        mask_config ([`MaskConfig`], *optional*):
            Compute a mask when training starts; it is saved as `wagle_mask.safetensors` in `args.output_dir`.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A ready mask, or where one is saved. With neither `mask` nor `mask_config`, all trainable weights train.
        forget_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask of `mask_config` looks for; by default those of `train_dataset`.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights it should spare, for scores that compare two sets. Not trained on.
    """

    _name = "Masked SFT"
    _tag_names = ["trl", "wagle-trl", "sft"]
    args: SFTConfig
    config_class: type[SFTConfig] = MaskedSFTConfig
    sample_losses = staticmethod(fused_sample_losses)
    planning_losses = staticmethod(losses_on_gpu)
    head_temperature = 1.0

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        *,
        mask_config: MaskConfig | None = None,
        mask: WeightMask | str | os.PathLike | None = None,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
    ):
        check_rows(train_dataset, "train_dataset")
        args = self._to_config(args, model)
        if mask_config is not None:
            check_one_row_a_sample(args)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_loss_func,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
            quantization_config,
            peft_config,
            formatting_func,
            mask_config=mask_config,
            mask=mask,
            forget_dataset=forget_dataset,
            retain_dataset=retain_dataset,
        )

    @classmethod
    def _to_config(cls, args: TrainingArguments | None, model: str | PreTrainedModel | PeftModel) -> SFTConfig:
        """`args` as this trainer's config, so that a script with an `SFTConfig` runs unchanged."""
        if isinstance(args, cls.config_class):
            return args
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            return cls.config_class(f"{Path(name).name}-{cls._name.replace(' ', '-')}")
        hidden = {name: value for name, value in vars(args).items() if name.endswith("_token")}  # by `to_dict`
        values = args.to_dict() | hidden
        known = {field.name for field in dataclasses.fields(cls.config_class) if field.init}
        return cls.config_class(**{name: value for name, value in values.items() if name in known})

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if isinstance(dataset, Dataset):
            check_answers(dataset, dataset_name)
        template = self.chat_template or getattr(processing_class, "chat_template", None)
        self.chat_template = pin_date(template) if template != pin_date(template) else self.chat_template
        if args.completion_only_loss is None:  # of each data set, where TRL decides by the training rows for all
            self.completion_only_loss = {"prompt", "completion"} <= set(dataset.column_names or ())
        prepared = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if isinstance(dataset, Dataset) and isinstance(prepared, Dataset) and not packing:
            check_none_dropped(dataset, prepared, dataset_name, args.max_length)
        return prepared

    def _prepare_further(self, dataset: Dataset, name: str) -> Dataset:
        """Prepare a data set that `SFTTrainer` knows nothing of as it prepares `train_dataset`."""
        return self._prepare_dataset(  # pyright: ignore[reportReturnType]
            dataset, self.processing_class, self.args, self.args.packing, self._formatting_func, name
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return self.data_collator(rows)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Named by split here: `SFTTrainer.log` would name the metrics of every split `eval_...`, the last one winning
        metrics = self._metrics["eval"]
        output.metrics.update({f"{metric_key_prefix}_{key}": sum(v) / len(v) for key, v in metrics.items()})  # pyright: ignore[reportOptionalMemberAccess]
        metrics.clear()
        return output
