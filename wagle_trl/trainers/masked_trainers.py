"""Further trainers with a mask: those of TRL, and transformers' own."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer  # pyright: ignore[reportPrivateImportUsage]

from ..losses.per_sample import Batch, pair_losses, pair_rows
from .mask_mixin import MaskMixin
from .mask_options import MaskOptions


@dataclass
class MaskedTrainingArguments(MaskOptions, TrainingArguments):
    """[`~transformers.TrainingArguments`] with [`~trainers.mask_options.MaskOptions`]."""


class MaskedTrainer(MaskMixin, Trainer):
    """[`~transformers.Trainer`] with a mask, see [`~trainers.mask_mixin.MaskMixin`]."""


@dataclass
class MaskedDPOConfig(MaskOptions, DPOConfig):
    """[`~trl.DPOConfig`] with [`~trainers.mask_options.MaskOptions`]."""


class MaskedDPOTrainer(MaskMixin, DPOTrainer):
    """
    [`~trl.DPOTrainer`] with a mask, see [`~trainers.mask_mixin.MaskMixin`].

    Example:
    ```python
    >>> trainer = MaskedDPOTrainer(model, args=DPOConfig("out"), train_dataset=preferences, mask="my-mask")
    >>> trainer.train()
    ```
    """

    _name = "Masked DPO"
    _tag_names = ["trl", "wagle-trl", "dpo"]
    head_temperature = 1.0


@dataclass
class MaskedKTOConfig(MaskOptions, KTOConfig):
    """[`~trl.KTOConfig`] with [`~trainers.mask_options.MaskOptions`]."""


class MaskedKTOTrainer(MaskMixin, KTOTrainer):
    """[`~trl.KTOTrainer`] with a mask, see [`~trainers.mask_mixin.MaskMixin`]."""

    _name = "Masked KTO"
    _tag_names = ["trl", "wagle-trl", "kto"]
    head_temperature = 1.0


@dataclass
class MaskedRewardConfig(MaskOptions, RewardConfig):
    """[`~trl.RewardConfig`] with [`~trainers.mask_options.MaskOptions`]."""


class MaskedRewardTrainer(MaskMixin, RewardTrainer):
    """
    [`~trl.RewardTrainer`] with a mask, see [`~trainers.mask_mixin.MaskMixin`]. A mask is computed from pairs of
    a chosen and a rejected text, as in `train_dataset`.
    """

    args: RewardConfig
    _name = "Masked reward"
    _tag_names = ["trl", "wagle-trl", "reward-trainer"]
    sample_losses = staticmethod(pair_losses)
    attributed_columns = ("chosen_ids", "rejected_ids")

    def _prepare_additional(self, dataset: Dataset, name: str) -> Dataset:
        return self._prepare_dataset(dataset, self.processing_class, self.args, name)  # pyright: ignore[reportReturnType]

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return pair_rows(self.data_collator(rows))


@dataclass
class MaskedGRPOConfig(MaskOptions, GRPOConfig):
    """[`~trl.GRPOConfig`] with [`~trainers.mask_options.MaskOptions`]."""


class MaskedGRPOTrainer(MaskMixin, GRPOTrainer):
    """[`~trl.GRPOTrainer`] with a mask, see [`~trainers.mask_mixin.MaskMixin`]."""

    _name = "Masked GRPO"
    _tag_names = ["trl", "wagle-trl", "grpo"]

    @property
    def head_temperature(self) -> float:
        return self.temperature
