"""Inverted hinge loss (arXiv 2408.06621)."""

from dataclasses import dataclass

from torch import Tensor

from ..losses.distributions import ihl_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import UnlearningConfig


@dataclass
class IHLConfig(UnlearningConfig):
    r"""
    Configuration class for the [`IHLTrainer`], with the options of [`~unlearning.config.UnlearningConfig`] and
    [`~trl.SFTConfig`].
    """


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
    distributions = True

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        return ihl_loss(*forget.states, forget.targets, forget.num_tokens)
