"""Saturation and importance weights (arXiv 2505.11953)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import satimp_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class SatImpConfig(UnlearningConfig):
    r"""
    Configuration class for the [`SatImpTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.05`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta1 (`float`, *optional*, defaults to `1.0`):
            Power of the probability of a token in its weight; with 5, as published, forgetting stops early.
        beta2 (`float`, *optional*, defaults to `1.0`):
            Power of the complement of this probability in its weight.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.05, metadata=RETAIN_WEIGHT)
    beta1: float = field(default=1.0, metadata={"help": "Power of the probability of a token in its weight."})
    beta2: float = field(default=1.0, metadata={"help": "Power of the complement of this probability in its weight."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta1", "beta2")


class SatImpTrainer(UnlearningTrainer):
    """
    Trainer for SatImp (arXiv 2505.11953): each token weighs `p^beta1 (1 - p)^beta2`, so that neither those that are forgotten
    nor those that are certain count, `mean p^beta1 (1 - p)^beta2 log p + retain_weight * CE(retain)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "SatImp"
    _tag_names = ["trl", "wagle-trl", "unlearning", "satimp"]
    _paper = Paper(
        "2505.11953",
        "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning",
        "Yang, Puning and Wang, Qizhou and Huang, Zhuo and Liu, Tongliang and Zhang, Chengqi and Han, Bo",
    )
    args: SatImpConfig
    config_class = SatImpConfig
    rate_factor = 2.0

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return satimp_loss(batch.forget.log_probs, self.args.beta1, self.args.beta2, batch.forget.num_tokens)
