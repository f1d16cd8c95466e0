"""TRL's `SFTTrainer` with a mask, which is also the base of the unlearning trainers."""

import copy
import dataclasses
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from transformers.trainer_utils import set_seed
from transformers.utils import logging
from transformers.utils.import_utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.data_utils import get_dataset_column_names

from ..attribution.config import MaskConfig
from ..data.chat_template import pin_date
from ..data.formats import to_trl
from ..data.lengths import LongRows, fit_rows
from ..data.tokenization import RowOptions, tokenize_dataset
from ..files.model_class import check_causal_lm
from ..losses.per_sample import Batch, fused_sample_losses
from ..masks.mask import WeightMask
from ..memory.simulation import losses_on_gpu
from .checks import check_rows, check_unpacked
from .mask_mixin import MaskMixin
from .mask_options import MaskOptions

logger = logging.get_logger(__name__)


@dataclass
class MaskedSFTConfig(MaskOptions, SFTConfig):
    r"""
    Configuration class for the [`MaskedSFTTrainer`]: [`~trl.SFTConfig`] with [`~trainers.mask_options.MaskOptions`].
    `bf16` is on by default only where the GPU supports it, so that the same script runs on a CPU.

    Parameters:
        long_rows (`str`, *optional*, defaults to `"truncate"`):
            What to do with training rows longer than `max_length`: `"truncate"` them, as TRL does; `"split"` rows of which
            every token is scored into several rows; or `"refuse"` rows whose answers would be cut.
    """

    long_rows: LongRows = field(
        default="truncate",
        metadata={
            "help": "What to do with training rows longer than `max_length`: 'truncate' them, as TRL does; 'split' rows of "
            "plain text into several rows; or 'refuse' rows whose answers would be cut."
        },
    )

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
            How to compute a mask when training starts. It is saved as `wagle_mask.safetensors` in `args.output_dir`.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A mask that exists, or its path. With neither `mask` nor `mask_config`, all trainable weights train.
        forget_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask of `mask_config` selects; by default those of `train_dataset`.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask spares, for scores that compare two sets. They are not trained on.
    """

    _name = "Masked SFT"
    _tag_names = ["trl", "wagle-trl", "sft"]
    args: MaskedSFTConfig
    config_class: type[MaskedSFTConfig] = MaskedSFTConfig
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
        if not isinstance(model, str):
            check_causal_lm(model.config)
        args = self._to_config(args, model)
        set_seed(args.seed)  # `Trainer` does so only after adapters got their first weights
        if mask_config is not None:
            check_unpacked(args)
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
    def _to_config(cls, args: TrainingArguments | None, model: str | PreTrainedModel | PeftModel) -> MaskedSFTConfig:
        """
        Convert `args` to this trainer's config, so that a script with an `SFTConfig` runs unchanged. Options that stand at
        the defaults of their own class take the defaults of this trainer's.
        """
        if isinstance(args, cls.config_class):
            return args
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            return cls.config_class(f"{Path(name).name}-{cls._name.replace(' ', '-')}")
        hidden = {name: value for name, value in vars(args).items() if name.endswith("_token")}  # `to_dict` hides them
        values = args.to_dict() | hidden
        defaults = {field.name: field.default for field in dataclasses.fields(args)}
        own = {field.name: field.default for field in dataclasses.fields(cls.config_class) if field.init}
        untouched = {name for name in own if values.get(name) == defaults.get(name) != own[name]}
        return cls.config_class(**{name: values[name] for name in own if name in values and name not in untouched})

    # Rows

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """Prepare rows as `SFTTrainer` does, and count the answer tokens that are cut."""
        template = self.chat_template or getattr(processing_class, "chat_template", None)
        self.chat_template = pin_date(template) if template != pin_date(template) else self.chat_template
        if isinstance(dataset, Dataset) and formatting_func is None:
            dataset = to_trl(dataset, processing_class, args.dataset_text_field)
        if args.completion_only_loss is None:  # decided per data set; TRL would decide for all by the training rows
            self.completion_only_loss = {"prompt", "completion"} <= set(get_dataset_column_names(dataset))
        if packing or not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        uncut = copy.copy(args)
        uncut.max_length = None
        rows = super()._prepare_dataset(dataset, processing_class, uncut, packing, formatting_func, dataset_name)
        return self._fit(rows, args, dataset_name, drop_empty=True)  # pyright: ignore[reportArgumentType]

    def _fit(self, rows: Dataset, args: MaskedSFTConfig, name: str, drop_empty: bool = False) -> Dataset:
        """Keep rows within `max_length`, and record how much of their answers is left, for log, report and card."""
        must_fit = args.long_rows == "split" or name == "train"
        name = self.train_set if name == "train" else name
        long_rows = args.long_rows if must_fit else "truncate"
        rows, counted = fit_rows(rows, RowOptions.of(args), name, long_rows, drop_empty=drop_empty)
        self.answer_tokens[name] = counted
        if counted.rows_cut:
            logger.warning(f"max_length={args.max_length} of the {name} set: {counted}.")
        return rows

    @property
    def tokenization(self) -> dict[str, Any]:
        """Options with which [`~data.tokenization.tokenize_row`] makes the tokens of this run."""
        options = asdict(RowOptions.of(self.args)) | {"formatting_func": self._formatting_func is not None}
        if self.args.long_rows == "split":  # then every token is in some row
            options["max_length"] = None
        return options

    def _prepare_additional(self, dataset: Dataset, name: str) -> Dataset:
        """Tokenize a data set that is no argument of `SFTTrainer`; its answers are scored."""
        return self._answers(dataset, self.processing_class, self.args, self._formatting_func, name)  # pyright: ignore[reportReturnType]

    def _answers(self, dataset, processing_class, args, formatting_func, name):
        """Tokenize rows of any format; answers are scored."""
        if formatting_func is not None:
            columns = get_dataset_column_names(dataset)
            dataset = dataset.map(lambda row: {args.dataset_text_field: formatting_func(row)}, remove_columns=columns)
        shown = self.train_set if name == "train" else name
        rows = tokenize_dataset(dataset, processing_class, RowOptions.of(args), shown, args.dataset_num_proc)
        return self._fit(rows, args, name) if isinstance(rows, Dataset) else rows

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return self.data_collator(rows)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Named by split here: `SFTTrainer.log` would name the metrics of every split `eval_...` and keep only the last
        metrics = self._metrics["eval"]
        output.metrics.update({f"{metric_key_prefix}_{key}": sum(v) / len(v) for key, v in metrics.items()})  # pyright: ignore[reportOptionalMemberAccess]
        metrics.clear()
        return output
