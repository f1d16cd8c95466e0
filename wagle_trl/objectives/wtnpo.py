"""Weighted token-wise negative preference optimization (arXiv 2502.19301)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import tnpo_loss
from ..papers import GRADIENT_PERSPECTIVE
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class WTNPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`WTNPOTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `1.0`):
            Inverse temperature; 4 in the paper, with an `alpha` of 1.5, which stops early.
        alpha (`float`, *optional*, defaults to `0.5`):
            Power of the probability that weights a token, too.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.1, metadata=RETAIN_WEIGHT)
    beta: float = field(default=1.0, metadata={"help": "Inverse temperature."})
    alpha: float = field(default=0.5, metadata={"help": "Power of the probability that weights a token, too."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta", "alpha")


class WTNPOTrainer(UnlearningTrainer):
    """
    Trainer for weighted token-wise NPO (arXiv 2502.19301): the weight of a token in [`TNPOTrainer`], times its probability to
    the power of `alpha`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "WTNPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "wtnpo"]
    _paper = GRADIENT_PERSPECTIVE
    args: WTNPOConfig
    config_class = WTNPOConfig
    rate_factor = 2.0
    reference = "log_probs"

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget, args = batch.forget, self.args
        assert forget.reference_log_probs is not None  # `reference` declares them
        return tnpo_loss(forget.log_probs, forget.reference_log_probs, args.beta, args.alpha, forget.num_tokens)
