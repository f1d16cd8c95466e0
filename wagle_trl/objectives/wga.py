"""Weighted gradient ascent (arXiv 2502.19301)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import wga_loss
from ..papers import GRADIENT_PERSPECTIVE
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class WGAConfig(UnlearningConfig):
    r"""
    Configuration class for the [`WGATrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.25`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `1.0`):
            Power of the probability that weights a token.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.25, metadata=RETAIN_WEIGHT)
    beta: float = field(default=1.0, metadata={"help": "Power of the probability that weights a token."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class WGATrainer(UnlearningTrainer):
    """
    Trainer for weighted gradient ascent (arXiv 2502.19301): each token weighs its probability to the power of `beta`,
    `mean p^beta log p + retain_weight * CE(retain)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "WGA"
    _tag_names = ["trl", "wagle-trl", "unlearning", "wga"]
    _paper = GRADIENT_PERSPECTIVE
    args: WGAConfig
    config_class = WGAConfig
    rate_factor = 2.0

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return wga_loss(batch.forget.log_probs, self.args.beta, batch.forget.num_tokens)
