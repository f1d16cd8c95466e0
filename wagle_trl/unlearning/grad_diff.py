from dataclasses import dataclass

from torch import Tensor

from ..losses.objectives import cross_entropy
from .base import Counts, UnlearningConfig, UnlearningTrainer


@dataclass
class GradDiffConfig(UnlearningConfig):
    r"""
    Configuration class for the [`GradDiffTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the retain rows.

    The rest is that of [`~trl.SFTConfig`].
    """


class GradDiffTrainer(UnlearningTrainer):
    """
    Trainer for gradient difference (arXiv 2203.12817): ascend on the forget rows, descend on the retain rows,
    `-CE(forget) + retain_weight * CE(retain)`. The forget term has no bound: stop early, or use [`NPOTrainer`].

    The arguments are those of [`NPOTrainer`].
    """

    _name = "GradDiff"
    _tag_names = ["trl", "wagle-trl", "unlearning", "grad-diff"]
    config_class = GradDiffConfig

    def forget_loss(self, token_log_probs: Tensor, inputs: dict[str, Tensor], counts: Counts) -> Tensor:
        return -cross_entropy(token_log_probs, counts.forget_tokens)
