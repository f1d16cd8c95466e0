"""Preference optimization by refusals (arXiv 2401.06121)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from datasets import Dataset
from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_choice

AttributedRows = Literal["forget", "alternate"]


@dataclass
class POConfig(UnlearningConfig):
    r"""
    Configuration class for the [`POTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `2.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        attributed_rows (`str`, *optional*, defaults to `"forget"`):
            Rows whose weights the mask selects: `"forget"`, those that hold the answers; or `"alternate"`, those that would
            learn the refusals, as WAGLE's published code (arXiv 2410.17509) does.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=2.0, metadata=RETAIN_WEIGHT)
    attributed_rows: AttributedRows = field(
        default="forget",
        metadata={
            "help": "Rows whose weights the mask selects: 'forget', those that hold the answers; or 'alternate', those that would "
            "learn the refusals, as published."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "attributed_rows", get_args(AttributedRows))


class POTrainer(UnlearningTrainer):
    """
    Trainer for preference optimization as TOFU (arXiv 2401.06121) and WAGLE (arXiv 2410.17509) call it, and others IDK: learn to
    refuse, `CE(alternate) + retain_weight * CE(retain)`. The refusals come from `refusals`, or from a column `alternate`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "PO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "po"]
    _paper = Paper(
        "2401.06121",
        "TOFU: A Task of Fictitious Unlearning for LLMs",
        "Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico",
    )
    args: POConfig
    config_class = POConfig
    rows = ("alternate",)
    # At the rate of the others a model learns to refuse, and still writes most answers that it knows by heart
    rate_factor = 4.0

    @property
    def attributed_dataset(self) -> Dataset:
        if self.args.attributed_rows == "alternate" and self.alternate_dataset is not None:
            return self.alternate_dataset
        return super().attributed_dataset

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return cross_entropy(batch.alternate.log_probs, batch.alternate.num_tokens)
