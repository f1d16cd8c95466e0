"""Token-wise negative preference optimization (arXiv 2502.19301)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import tnpo_loss
from ..papers import GRADIENT_PERSPECTIVE
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class TNPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`TNPOTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.25`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `1.0`):
            Inverse temperature. With 4, as published, forgetting stops at half of the probability.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.25, metadata=RETAIN_WEIGHT)
    beta: float = field(default=1.0, metadata={"help": "Inverse temperature."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class TNPOTrainer(UnlearningTrainer):
    """
    Trainer for token-wise NPO (arXiv 2502.19301): NPO's weight for each token rather than each answer,
    `mean u log p + retain_weight * CE(retain)`, see [`~losses.objectives.tnpo_loss`].

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "TNPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "tnpo"]
    _paper = GRADIENT_PERSPECTIVE
    args: TNPOConfig
    config_class = TNPOConfig
    rate_factor = 2.0
    reference = "log_probs"

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        assert forget.reference_log_probs is not None  # `reference` declares them
        return tnpo_loss(forget.log_probs, forget.reference_log_probs, self.args.beta, 0.0, forget.num_tokens)
