"""Gradient ascent (arXiv 2210.01504)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig


@dataclass
class GradientAscentConfig(UnlearningConfig):
    r"""
    Configuration class for the [`GradientAscentTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.0, metadata=RETAIN_WEIGHT)


class GradientAscentTrainer(UnlearningTrainer):
    """
    Trainer for gradient ascent on the forget rows (arXiv 2210.01504), `-CE(forget)`. Nothing holds the other rows in place: it
    is the baseline that the others mend.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "GradAscent"
    _tag_names = ["trl", "wagle-trl", "unlearning", "gradient-ascent"]
    _paper = Paper(
        "2210.01504",
        "Knowledge Unlearning for Mitigating Privacy Risks in Language Models",
        "Jang, Joel and Yoon, Dongkeun and Yang, Sohee and Cha, Sungmin and Lee, Moontae and Logeswaran, Lajanugen and Seo, Minjoon",
    )
    args: GradientAscentConfig
    config_class = GradientAscentConfig

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return -cross_entropy(batch.forget.log_probs, batch.forget.num_tokens)
