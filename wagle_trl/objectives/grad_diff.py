"""Gradient difference (arXiv 2203.12817)."""

from dataclasses import dataclass

from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import UnlearningConfig


@dataclass
class GradDiffConfig(UnlearningConfig):
    r"""
    Configuration class for the [`GradDiffTrainer`], with the options of [`~unlearning.config.UnlearningConfig`] and
    [`~trl.SFTConfig`].
    """


class GradDiffTrainer(UnlearningTrainer):
    """
    Trainer for gradient difference (arXiv 2203.12817): gradient ascent on the forget rows and descent on the retain
    rows, `-CE(forget) + retain_weight * CE(retain)`. The forget term has no bound: stop early, or use [`NPOTrainer`].

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "GradDiff"
    _tag_names = ["trl", "wagle-trl", "unlearning", "grad-diff"]
    # TOFU (2401.06121) took the method from this paper and gave it its name
    _paper = Paper(
        "2203.12817", "Continual Learning and Private Unlearning", "Liu, Bo and Liu, Qiang and Stone, Peter"
    )
    config_class = GradDiffConfig

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return -cross_entropy(batch.forget.log_probs, batch.forget.num_tokens)
