"""Unlearning cross-entropy (arXiv 2412.20200)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import uce_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig


@dataclass
class UCEConfig(UnlearningConfig):
    r"""
    Configuration class for the [`UCETrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.25`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.25, metadata=RETAIN_WEIGHT)


class UCETrainer(UnlearningTrainer):
    """
    Trainer for the unlearning cross-entropy (arXiv 2412.20200): ascent that stops by itself,
    `mean -log(1 - p / 2) + retain_weight * CE(retain)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "UCE"
    _tag_names = ["trl", "wagle-trl", "unlearning", "uce"]
    _paper = Paper(
        "2412.20200",
        "Federated Unlearning with Gradient Descent and Conflict Mitigation",
        "Pan, Zibin and Wang, Zhichao and Li, Chi and Zheng, Kaiyan and Wang, Boqi and Tang, Xiaoying and Zhao, Junhua",
    )
    args: UCEConfig
    config_class = UCEConfig
    rate_factor = 2.0

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        return uce_loss(forget.log_probs, forget.answer, forget.num_tokens)
