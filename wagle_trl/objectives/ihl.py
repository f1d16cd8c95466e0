"""Inverted hinge loss (arXiv 2408.06621)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.distributions import ihl_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig


@dataclass
class IHLConfig(UnlearningConfig):
    r"""
    Configuration class for the [`IHLTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.25`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.25, metadata=RETAIN_WEIGHT)


class IHLTrainer(UnlearningTrainer):
    """
    Trainer for the inverted hinge loss (arXiv 2408.06621): the answer token falls below the likeliest other one,
    `mean (1 + p_answer - max p_other) + retain_weight * CE(retain)`. It is bounded, and moves two tokens rather than all.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "IHL"
    _tag_names = ["trl", "wagle-trl", "unlearning", "ihl"]
    _paper = Paper(
        "2408.06621",
        "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs",
        "Cha, Sungmin and Cho, Sungjun and Hwang, Dasol and Lee, Moontae",
    )
    args: IHLConfig
    config_class = IHLConfig
    rate_factor = 2.0
    distributions = True

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        return ihl_loss(*forget.states, forget.targets, forget.num_tokens)
