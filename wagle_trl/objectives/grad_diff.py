"""Gradient difference (arXiv 2203.12817)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig


@dataclass
class GradDiffConfig(UnlearningConfig):
    r"""
    Configuration class for the [`GradDiffTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `10.0`):
            Weight of the loss on the retain rows. With 20, the default of the other objectives, 5 % of the weights and adapters
            do not forget in as many steps: gradient ascent is slow where the rows are known by heart.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=10.0, metadata=RETAIN_WEIGHT)


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
